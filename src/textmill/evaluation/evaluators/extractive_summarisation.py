"""Evaluate extractive summarisation."""

from __future__ import annotations

import pandas as pd

from textmill.evaluation.evaluators.summarisation import SummaryEvaluator
from textmill.metrics import rouge
from textmill.metrics.base import Outputs
from textmill.tasks.base import State
from textmill.tasks.extractive_summarisation import ExtractiveSummarisation


class ExtractiveSummarisationEvaluator(SummaryEvaluator):
    """Measures summaries that are made of units of the text."""

    task: ExtractiveSummarisation

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, `text`, `summary` (the reference), `prediction`, and ROUGE of each row."""
        selections = self.task.selections(outputs, frame["text"].tolist(), frame["units"].tolist())
        return rouge.table(frame, "summary", [" ".join(texts) for texts, _ in selections])
