"""The paths of a project: its root, its home for shared stores, the outputs of stages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from textmill.errors import UserError

_TEMPORARY = Path(".dvc") / "tmp"

START = "start"
"""Folder in `data/pretrained` with the version that the training starts from, and its key in the provenance."""
SEEN_FILE = "seen.parquet"
"""Record of the rows that a version was made with, and those of the versions that it started from."""


class _Below:
    """A path below the project's root."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __get__(self, layout: Layout, owner: type[Layout]) -> Path:
        return layout.root / self.path


@dataclass(frozen=True)
class Layout:
    """The paths of one project.

    Attributes:
        root: The folder with `dvc.yaml`, where a stage runs. It is a temporary copy under
            `dvc exp run --temp` or `--queue`, and for a candidate of `textmill choose` or a
            trial of `textmill tune`.
    """

    root: Path

    conf = _Below("conf")  # groups of Hydra
    params = _Below("params.yaml")
    resolved = _Below("data/resolved.yaml")  # by `compose`
    code = _Below("data/code.yaml")  # digest of the code that each stage can reach, by `compose`
    raw = _Below("data/raw")  # the corpus as published, by `fetch`
    pretrained = _Below("data/pretrained")  # weights and tokenizer, by `fetch`
    prepared = _Below("data/prepared")  # tokenised splits, by `prepare`
    trained = _Below("data/trained")  # the best weights, by `train`
    evaluation = _Below("data/evaluation")  # metrics and report, by `evaluate`
    exported = _Below("data/exported")  # the model's folder, by `export`
    registered = _Below("data/registered")  # name and version, by `register`

    @cached_property
    def home(self) -> Path:
        """The folder of what outlives an experiment: tracking store, checkpoints, download cache.

        Absolute: `$TEXTMILL_HOME`, the main repository of a temporary copy, or `root`.
        """
        if chosen := os.environ.get("TEXTMILL_HOME"):
            return Path(chosen).expanduser().resolve()
        main, marker, _ = str(self.root).partition(f"{os.sep}{_TEMPORARY}{os.sep}")
        return Path(main) if marker else self.root

    @property
    def state(self) -> Path:
        """Machine-local state that is not a stage's output: checkpoints, caches."""
        return self.home / _TEMPORARY / "textmill"

    @property
    def reasons(self) -> Path:
        """Why each stage last ran in this folder."""
        return self.root / _TEMPORARY / "textmill" / "why"

    @property
    def writing(self) -> Path:
        """Locks of the stages that write in this folder now."""
        return self.root / _TEMPORARY / "textmill" / "writing"

    @property
    def choosing(self) -> Path:
        """Temporary copies, one per candidate."""
        return self.state / "choose"

    @property
    def tuning(self) -> Path:
        """A folder per study of `textmill tune`: its data, checkpoints and temporary copies."""
        return self.state / "tune"

    @property
    def spool(self) -> Path:
        """Metrics and artifacts that the tracking server has not taken yet; a folder for each stage."""
        return self.state / "spool"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of unfinished trainings; not a stage's output, so that they survive a kill."""
        return self.state / "checkpoints"


def find_layout(start: Path | None = None) -> Layout:
    """Return the layout of the project that contains `start` (default: the working folder).

    Raises:
        UserError: `start` and its parents have no `dvc.yaml`.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return Layout(folder)
    raise UserError(
        "not inside a Textmill project: no dvc.yaml here or above",
        where=str(here),
        fix="Change into the project's folder",
    )
