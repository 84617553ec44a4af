"""Evaluate question answering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from textmill.evaluation.evaluator import Evaluator, Report
from textmill.metrics.base import Metric, Outputs
from textmill.metrics.passages import passage_errors, passage_metrics, passage_sections, passage_table
from textmill.tasks.base import State
from textmill.tasks.question_answering import QuestionAnswering


class QuestionAnsweringEvaluator(Evaluator):
    """Measures answers as SQuAD 2.0 does."""

    task: QuestionAnswering
    baseline_columns = ["id", "question", "context", "answers"]

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, `question`, `answers`, `prediction` with `start`, `end`, `margin`, `exact_match` and `f1`."""
        spans = self.task.best_spans(outputs, frame)
        return passage_table(frame, spans.start, spans.end, spans.margin)

    def metrics(self, state: State) -> list[Metric]:
        """Return F1 and exact match, over all questions and over those with and without an answer."""
        return passage_metrics()

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `no_answer`, and `best_sentence`, the sentence most similar to the question."""
        from textmill.metrics.baselines.sentence_baseline import fit_baselines

        return fit_baselines(train, validation, options)

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return counts of answered and declined rows, and the wrong answers, the most confident first."""
        return Report(passage_sections(predictions), passage_errors(predictions))
