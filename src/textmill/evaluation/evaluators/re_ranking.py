"""Evaluate re-ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from textmill.evaluation.evaluator import Evaluator, Report
from textmill.metrics import retrieval
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State
from textmill.tasks.re_ranking import RELEVANT, ReRanking
from textmill.tasks.sentence_pairs import FIRST, SECOND
from textmill.text.label_lists import read_flag

_DEPTHS = (1, 3, 10)


class ReRankingEvaluator(Evaluator):
    """Measures the rank of the relevant documents among those that the first stage gave for their query."""

    task: ReRanking

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, both texts, targets, `prediction` (the score), `rank`, and what the metrics read."""
        return self._table(outputs["logits"][:, 0].astype(float), frame)

    def _table(self, scores: NDArray[np.float64], frame: pd.DataFrame, *, first: bool = False) -> pd.DataFrame:
        flags = frame[RELEVANT].tolist() if RELEVANT in frame else ["0"] * len(frame)
        relevant = np.array([read_flag(cell) for cell in flags], bool)
        places = np.array(self.task.first_ranks(frame))
        ranked = retrieval.reranked(frame[FIRST].tolist(), scores, relevant, places, self.task.config.depth)
        ranks = places.astype(float) if first else ranked
        wanted = ("id", *self.task.text_columns, *self.task.target_columns)
        kept = frame[[name for name in wanted if name in frame]].reset_index(drop=True)
        own = relevant.astype(float)
        return kept.assign(prediction=scores, rank=ranks, is_relevant=own, reciprocal_rank=own / ranks)

    def metrics(self, state: State) -> list[Metric]:
        """Return mean reciprocal rank, recall at 1 and at 3, over the relevant documents."""
        return retrieval.reranking_metrics()

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Return `first_stage`, the ranks in the data, where they are, and fit `tfidf`, which ranks them again."""
        from textmill.metrics.baselines.word_vectors import TfidfVectors

        tfidf = TfidfVectors([*train[FIRST].unique(), *train[SECOND].unique()])

        def by_words(frame: pd.DataFrame) -> pd.DataFrame:
            return self._table(np.asarray(tfidf.cosines(frame[FIRST].tolist(), frame[SECOND].tolist()), float), frame)

        def as_given(frame: pd.DataFrame) -> pd.DataFrame:
            return self._table(-np.array(self.task.first_ranks(frame), float), frame, first=True)

        return {"first_stage": as_given, "tfidf": by_words} if self.task.config.first_stage else {"tfidf": by_words}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return shares of queries by the rank of their relevant document, and those with another one first."""
        own = predictions[predictions["is_relevant"] == 1]
        places = np.array(self.task.first_ranks(own), float)
        rows = [
            {
                "relevant document among the first": first,
                "first stage": round(float((places <= first).mean()), 4) if self.task.config.first_stage else None,
                "after re-ranking": round(float((own["rank"] <= first).mean()), 4),
            }
            for first in _DEPTHS
        ]
        depth = self.task.config.depth
        text = f"There are {len(own)} relevant documents. The first {depth} of the first stage are ranked again."
        wrong = own[own["rank"] > 1][["id", FIRST, SECOND, "rank", "prediction"]]
        errors = wrong.sort_values(["rank", "id"], ascending=[False, True], kind="stable", ignore_index=True)
        return Report([Section("Rank of the relevant document", text, pd.DataFrame(rows))], errors)
