"""Check that DVC's cache has room for what a stage made."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import yaml

from textmill.config.layout import Layout
from textmill.errors import disk_full, free_space
from textmill.files import size_of


def require_cache_space(stage: str, layout: Layout) -> None:
    """Check that the output of a stage that DVC runs fits into its cache, if that is on another disk.

    DVC would copy the output there after the stage, and end with an error that names neither file nor size.

    Raises:
        UserError: The disk of the cache is too full; the output is complete.
    """
    if os.environ.get("DVC_STAGE", "").rpartition(":")[2] != stage:
        return
    cache = _cache(layout.root)
    stages = yaml.safe_load((layout.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outputs = [layout.root / output for output in stages[stage].get("outs", []) if isinstance(output, str)]
    outputs = [path for path in outputs if path.exists() and path.stat().st_dev != _existing(cache).stat().st_dev]
    needed = sum(map(size_of, outputs))
    if free_space(cache) < needed:
        raise disk_full(cache, needed, then=f"run `dvc commit --force {stage}`; {outputs[0]} is complete")


def _cache(root: Path) -> Path:
    """Return the folder of the cache from the project's configuration of DVC."""
    folder = root / ".dvc"
    config = configparser.ConfigParser(interpolation=None)
    config.read([folder / "config", folder / "config.local"], encoding="utf-8")
    return folder / config.get("cache", "dir", fallback="cache")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
