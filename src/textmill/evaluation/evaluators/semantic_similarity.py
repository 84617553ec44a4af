"""Evaluate semantic textual similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from textmill.evaluation.evaluator import Evaluator, Report
from textmill.metrics.base import Metric, Outputs, Section
from textmill.metrics.correlations import correlation_metrics
from textmill.tasks.base import State
from textmill.tasks.sentence_pairs import FIRST, SECOND, similarities


class SemanticSimilarityEvaluator(Evaluator):
    """Measures the correlation of cosines and scores."""

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, both texts, `score` and `similarity`, the cosine."""
        return _table(similarities(outputs), frame)

    def metrics(self, state: State) -> list[Metric]:
        """Return Spearman's and Pearson's correlation of cosine and score."""
        return correlation_metrics("similarity", "score")

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `tfidf`, the cosine of weighted stems, and `word_overlap`, the common share of stems."""
        from textmill.metrics.baselines.word_vectors import TfidfVectors, overlaps

        def predictor(
            similarity: Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]],
        ) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: _table(similarity(frame[FIRST].tolist(), frame[SECOND].tolist()), frame)

        tfidf = TfidfVectors([*train[FIRST], *train[SECOND]])
        return {"tfidf": predictor(tfidf.cosines), "word_overlap": predictor(overlaps)}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return a plot of cosine by score, and the pairs by the distance of their ranks in both."""
        from textmill.metrics.plots import scatter

        plot = scatter(predictions["score"].to_numpy(), predictions["similarity"].to_numpy(), "score", "cosine")
        text = "Each point is a pair of the test split. A pair with a higher score should have a higher cosine."
        similarity, score = (predictions[name].rank(pct=True) for name in ("similarity", "score"))
        table = predictions.assign(misplaced_by=(similarity - score).round(4))
        order = table["misplaced_by"].abs().sort_values(ascending=False, kind="stable").index
        section = Section("Cosine and score", text, figures={"similarity": plot})
        return Report([section], table.loc[order].reset_index(drop=True))


def _table(cosines: NDArray[np.float64], frame: pd.DataFrame) -> pd.DataFrame:
    table: dict[str, Any] = {name: frame[name].to_numpy() for name in ("id", FIRST, SECOND) if name in frame}
    if "score" in frame:
        table["score"] = frame["score"].astype(float).to_numpy()
    return pd.DataFrame({**table, "similarity": cosines})
