"""The evaluator's contract: how a task's predictions are measured, compared and reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textmill.config.plugins import import_class
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State, Task

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from textmill.predicting.predictor import Predictor


@dataclass(frozen=True)
class Report:
    """The task-specific parts of the evaluation report.

    Attributes:
        sections: Tables and plots, in order.
        errors: Wrong predictions, worst first; None for a report without a list of errors.
        metrics: Metrics without an interval.
        warnings: Sentences on what nobody should overlook, such as a label that is never predicted.
    """

    sections: Sequence[Section] = ()
    errors: pd.DataFrame | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class Evaluator(ABC):
    """Measures the predictions of one task; `Task.evaluator` names the class."""

    def __init__(self, task: Any) -> None:
        self.task = task

    @abstractmethod
    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return one row an example: `id`, target, prediction and the columns that the metrics read."""

    @abstractmethod
    def metrics(self, state: State) -> list[Metric]:
        """Return the task's metrics, the main one first."""

    def main_metric(self, state: State) -> Metric:
        """Return the metric that `Task.main_metric` names."""
        return next(metric for metric in self.metrics(state) if metric.name == self.task.main_metric)

    @property
    def baseline_columns(self) -> list[str]:
        """Columns of the prepared splits that `baselines` reads."""
        return ["id", *self.task.text_columns, *self.task.target_columns, "words"]

    @abstractmethod
    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Train simple models on the same split; return by name a function from frame to `predictions`."""

    @abstractmethod
    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return the report's sections and the wrong predictions."""


class ExaminesNetwork(ABC):
    """An evaluator that also runs the network, such as for samples of its text."""

    @abstractmethod
    def examine(self, network: torch.nn.Module, outputs: Outputs, tokenizer: Path, state: State) -> Report:
        """Return further parts of the report.

        `network` is in evaluation mode, `outputs` are for the test split, `tokenizer` is the folder
        with `tokenizer.json`.
        """


class FindsLabelIssues(ABC):
    """An evaluator that can tell which training rows are likely to have a wrong label."""

    @abstractmethod
    def label_issues(self, train: pd.DataFrame, state: State, seed: int) -> pd.DataFrame:
        """Return the rows with a likely wrong label, the likeliest first; the columns of `baseline_columns` are given.

        See `textmill.metrics.label_issues.find_label_issues` for the columns of the result.
        """


def evaluator_of(task: Task) -> Evaluator:
    """Build the evaluator that `task.evaluator` names.

    Raises:
        UserError: There is no such class.
    """
    evaluator: Evaluator = import_class(task.evaluator, Evaluator)(task)
    return evaluator


def predict_rows(predictor: Predictor, frame: pd.DataFrame) -> pd.DataFrame:
    """Return an exported model's table of predictions for clean rows with their targets."""
    outputs, rows = predictor.outputs_for_targets(frame)
    return evaluator_of(predictor.task).predictions(outputs, rows, predictor.exported.state)
