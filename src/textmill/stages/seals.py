"""Check what a stage reads, and seal what it made."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import yaml

from textmill.config.layout import Layout
from textmill.errors import disk_full, free_space
from textmill.files import require_intact, seal, size_of
from textmill.processes import is_first_process


def check_inputs(stage: str, layout: Layout) -> None:
    """Compare the folders that a stage reads with the digests that the stages before noted in them.

    DVC does not read a file again whose size and time are unchanged.

    Raises:
        UserError: A file is damaged or missing; the first one is named.
    """
    if is_first_process():
        for folder in _paths(stage, "deps", layout):
            path = folder.relative_to(layout.root)
            require_intact(folder, f"Delete {path} and run `dvc checkout {path}`, or `dvc repro`")


def seal_outputs(stage: str, layout: Layout) -> None:
    """Note the digests of a stage's files in its output, and check that DVC's cache has room for it.

    If the cache is on another disk, DVC copies the output there after the stage. Without room it would
    end with an error that names neither file nor size.

    Raises:
        UserError: The disk of the cache is too full; the output is complete.
    """
    if not is_first_process():
        return
    outputs = _paths(stage, "outs", layout)
    for output in filter(Path.is_dir, outputs):
        seal(output)
    if os.environ.get("DVC_STAGE", "").rpartition(":")[2] == stage:
        cache = _cache(layout.root)
        device = next(folder for folder in (cache, *cache.parents) if folder.exists()).stat().st_dev
        copied = [path for path in outputs if path.stat().st_dev != device]
        needed = sum(map(size_of, copied))
        if free_space(cache) < needed:
            raise disk_full(cache, needed, then=f"run `dvc commit --force {stage}`; {copied[0]} is complete")


def _paths(stage: str, kind: str, layout: Layout) -> list[Path]:
    """Return the existing inputs (`deps`) or outputs (`outs`) of a stage in `dvc.yaml`."""
    entry = yaml.safe_load((layout.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].get(stage, {})
    paths = [layout.root / (item if isinstance(item, str) else next(iter(item))) for item in entry.get(kind, [])]
    return [path for path in paths if path.exists()]


def _cache(root: Path) -> Path:
    """Return the folder of the cache from the project's configuration of DVC."""
    folder = root / ".dvc"
    config = configparser.ConfigParser(interpolation=None)
    config.read([folder / "config", folder / "config.local"], encoding="utf-8")
    return folder / config.get("cache", "dir", fallback="cache")
