"""Compute a trained model's outputs for the rows of a corpus, once: a student learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.plugins import Plugin
from textmill.errors import UserError
from textmill.predicting.exported import read_specification

if TYPE_CHECKING:
    import pandas as pd

    from textmill.predicting.predictor import Predictor

_OUTPUT = "logits"


class ExportedTeacher(Plugin):
    """An exported classifier that teaches: the graph that serves gives the logits of each row."""

    _folder: Path
    _labels: Sequence[str]

    def open(self, folder: Path, labels: Sequence[str]) -> None:
        """Choose the exported model in `folder`, whose logits are then given in the order of `labels`.

        Raises:
            UserError: The folder has no exported classifier, or its labels are others.
        """
        exported = read_specification(folder)
        theirs = exported.state.get("labels", [])
        if _OUTPUT not in exported.outputs or set(theirs) != set(labels):
            fix = "Choose a version that was trained for the same task and labels"
            raise UserError(
                f"its labels are {theirs}, those of the data {list(labels)}", where="fetch.teacher", fix=fix
            )
        self._folder, self._labels = folder, list(labels)

    def logits(self, frame: pd.DataFrame) -> list[list[float]]:
        """Return the logits of each label for clean rows with the task's text columns."""
        order = [self._predictor.exported.state["labels"].index(label) for label in self._labels]
        texts = frame[list(self._predictor.task.text_columns)]
        logits: list[list[float]] = self._predictor.outputs(texts)[_OUTPUT][:, order].tolist()
        return logits

    @cached_property
    def _predictor(self) -> Predictor:
        # Loaded where it is used: a session does not travel to another process
        from textmill.predicting.loading import load_predictor

        return load_predictor(self._folder)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_predictor"}
