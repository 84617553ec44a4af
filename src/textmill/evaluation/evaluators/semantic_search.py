"""Evaluate semantic search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from textmill.evaluation.evaluator import Evaluator, Report
from textmill.metrics import retrieval
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State
from textmill.tasks.sentence_pairs import EMBEDDINGS, FIRST, SECOND

_EDGES = [1, 2, 5, 10, 100]
_RANKS = ["first", "second", "third to 5th", "6th to 10th", "11th to 100th", "later"]


class SemanticSearchEvaluator(Evaluator):
    """Measures the rank of each query's own document among the documents of all rows."""

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, both texts, `prediction` (the first document), and `rank` and `similarity` of the own one."""
        queries, documents = (outputs[name] for name in EMBEDDINGS)
        return _table(retrieval.search_embeddings(queries, documents, frame[SECOND].tolist()), frame)

    def metrics(self, state: State) -> list[Metric]:
        """Return mean reciprocal rank, recall at 1 and at 10."""
        return retrieval.retrieval_metrics()

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `bm25`, its constants chosen on validation, and `tfidf`."""
        fitted = retrieval.word_search(train, validation, FIRST, SECOND, options)

        def predictor(search: Callable[[pd.DataFrame], retrieval.Ranking]) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: _table(search(frame), frame)

        return {name: predictor(search) for name, search in fitted.items()}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return shares of rows by the rank of their own document, and the queries with another one first."""
        place = np.searchsorted(_EDGES, predictions["rank"].to_numpy(), side="left")
        counts = np.bincount(place, minlength=len(_RANKS))
        table = pd.DataFrame({"own document": _RANKS, "rows": counts, "share": (counts / len(predictions)).round(4)})
        text = f"Each of {len(predictions)} queries searches the documents of all rows for its own."
        wrong = predictions[predictions["rank"] > 1]
        errors = wrong.sort_values(["rank", "id"], ascending=[False, True], kind="stable", ignore_index=True)
        return Report([Section("Rank of the own document", text, table)], errors)


def _table(ranking: retrieval.Ranking, frame: pd.DataFrame) -> pd.DataFrame:
    documents = frame[SECOND].to_numpy(dtype=object)
    return pd.DataFrame(
        {
            "id": frame["id"].to_numpy(),
            FIRST: frame[FIRST].to_numpy(),
            SECOND: documents,
            "prediction": documents[ranking.best],
            "rank": ranking.rank,
            "similarity": ranking.score,
        }
    )
