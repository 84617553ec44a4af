"""Evaluate text regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from textmill.evaluation.evaluator import Evaluator, Report
from textmill.metrics import intervals
from textmill.metrics.base import Metric, Outputs
from textmill.tasks.base import State
from textmill.tasks.text_regression import TextRegression


class TextRegressionEvaluator(Evaluator):
    """Measures predicted numbers, or ranks of ordered classes, and their intervals."""

    task: TextRegression

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return the table of `metrics.intervals.number_table`, in the unit of the data or in ranks."""
        ranks = (outputs["logits"] > 0).sum(axis=1).astype(float) if self.task.config.classes else None
        return self._table(frame, *self.task.estimates(outputs, state), ranks)

    def _table(
        self,
        frame: pd.DataFrame,
        expected: NDArray[np.float64],
        radius: NDArray[np.float64],
        prediction: NDArray[np.float64] | None = None,
    ) -> pd.DataFrame:
        kept = frame[[name for name in ("id", "text", "value") if name in frame]]
        actual = self.task.numbers(frame["value"].tolist()) if "value" in frame else np.full(len(frame), np.nan)
        return intervals.number_table(kept, actual, expected, np.asarray(radius, float), prediction)

    def metrics(self, state: State) -> list[Metric]:
        """Return Spearman's correlation (the main one), errors, coverage and width of the intervals."""
        return intervals.number_metrics(ordered=self.task.config.classes is not None)

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `mean`, and `tfidf_ridge`; validation calibrates the intervals of both, too."""
        from textmill.metrics.baselines import word_baselines

        target, actual = (self.task.numbers(frame["value"].tolist()) for frame in (train, validation))
        fitted = word_baselines.fit_numbers(train, validation, target, actual, options)
        last = len(self.task.config.classes or ()) - 1.0

        def predictor(predict: Callable[[pd.DataFrame], NDArray[np.float64]]) -> Callable[[pd.DataFrame], pd.DataFrame]:
            errors = np.abs(predict(validation) - actual)
            radius = intervals.conformal_quantile(errors, self.task.config.coverage)

            def table(frame: pd.DataFrame) -> pd.DataFrame:
                expected = predict(frame)
                ranks = np.clip(np.rint(expected), 0, last) if self.task.config.classes else None
                return self._table(frame, expected, np.full(len(frame), radius), ranks)

            return table

        return {name: predictor(predict) for name, predict in fitted.items()}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return true by predicted numbers, the coverage of the intervals, and the largest errors."""
        sections = intervals.number_sections(predictions, self.task.config.coverage)
        return Report(sections, intervals.number_errors(predictions, ["id", *self.task.text_columns]))
