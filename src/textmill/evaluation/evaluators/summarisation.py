"""Evaluate summaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from textmill.evaluation.evaluator import Evaluator, Report
from textmill.evaluation.evaluators.sequence_to_sequence import ReportsReferenceLoss
from textmill.metrics import rouge
from textmill.metrics.base import Metric, Outputs
from textmill.tasks.base import State
from textmill.tasks.sequence_to_sequence import TEXTS

_TARGET = "summary"


class SummaryEvaluator(Evaluator):
    """Measures ROUGE."""

    baseline_columns = ["id", "text", _TARGET]

    def metrics(self, state: State) -> list[Metric]:
        """Return ROUGE-1, -2 and -L."""
        return rouge.metrics()

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `lead`: the first units of the text, their number chosen on validation."""
        return {"lead": rouge.lead_baseline(validation, _TARGET, self.task.config.units)}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return some summaries, and all by rising ROUGE."""
        return Report([rouge.section(predictions, _TARGET)], rouge.worst(predictions, _TARGET))


class SummarisationEvaluator(SummaryEvaluator, ReportsReferenceLoss):
    """Measures generated summaries."""

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, `text`, `summary` (the reference), `prediction`, and ROUGE of each row."""
        return rouge.table(frame, _TARGET, outputs[TEXTS].tolist())
