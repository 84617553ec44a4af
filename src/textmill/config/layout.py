"""Where everything lies: the project root, the home of shared stores, the stages' outputs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from textmill.errors import UserError

_TEMPORARY = Path(".dvc") / "tmp"


@dataclass(frozen=True)
class Layout:
    """The places of one project.

    Attributes:
        root: The folder with `dvc.yaml`, where a stage runs. With `dvc exp run --temp` or
            `--queue`, and for a candidate of `textmill choose`, this is a throw-away copy.
        home: The folder that owns what outlives an experiment: tracking store, checkpoints,
            download cache. It is `root`, or the main repository of a throw-away copy, or
            `$TEXTMILL_HOME`. Always absolute.
    """

    root: Path

    @cached_property
    def home(self) -> Path:
        """The folder that owns what outlives an experiment; absolute."""
        if chosen := os.environ.get("TEXTMILL_HOME"):
            return Path(chosen).expanduser().resolve()
        marker = f"{os.sep}{_TEMPORARY}{os.sep}"
        main, found, _ = str(self.root).partition(marker)
        return Path(main) if found else self.root

    @property
    def conf(self) -> Path:
        """Hydra's groups."""
        return self.root / "conf"

    @property
    def params(self) -> Path:
        """The knobs people turn."""
        return self.root / "params.yaml"

    @property
    def resolved(self) -> Path:
        """Made by `compose`."""
        return self.root / "data" / "resolved.yaml"

    @property
    def code(self) -> Path:
        """Made by `compose`: a digest of the code that each stage can reach."""
        return self.root / "data" / "code.yaml"

    @property
    def raw(self) -> Path:
        """The corpus as published, by `fetch`."""
        return self.root / "data" / "raw"

    @property
    def pretrained(self) -> Path:
        """Weights and tokenizer, by `fetch`."""
        return self.root / "data" / "pretrained"

    @property
    def prepared(self) -> Path:
        """Tokenised splits, by `prepare`."""
        return self.root / "data" / "prepared"

    @property
    def trained(self) -> Path:
        """The best weights, by `train`."""
        return self.root / "data" / "trained"

    @property
    def evaluation(self) -> Path:
        """Figures and report, by `evaluate`."""
        return self.root / "data" / "evaluation"

    @property
    def exported(self) -> Path:
        """The model as a folder, by `export`."""
        return self.root / "data" / "exported"

    @property
    def registered(self) -> Path:
        """Name and version, by `register`."""
        return self.root / "data" / "registered"

    @property
    def state(self) -> Path:
        """Machine-local state that is no stage's output: checkpoints, caches."""
        return self.home / _TEMPORARY / "textmill"

    @property
    def reasons(self) -> Path:
        """Why each stage ran last in this very folder."""
        return self.root / _TEMPORARY / "textmill" / "why"

    @property
    def choosing(self) -> Path:
        """Throw-away copies, one a candidate."""
        return self.state / "choose"

    @property
    def checkpoints(self) -> Path:
        """Of unfinished trainings; no stage's output, so that they survive a kill."""
        return self.state / "checkpoints"


def find_layout(start: Path | None = None) -> Layout:
    """The layout of the project that holds `start` (default: the working folder).

    Raises:
        UserError: No `dvc.yaml` in `start` or above it.
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
