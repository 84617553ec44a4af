"""Metrics of retrieval, and searches by word statistics as baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from textmill.config.section import Section
from textmill.metrics.base import Columns, Metric, Score
from textmill.metrics.baselines.options import check_options
from textmill.metrics.baselines.word_vectors import TfidfVectors, stems

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Scorer = Callable[[Sequence[str], Sequence[str]], NDArray[Any]]
"""From queries and documents to a score of each document for each query, shape (queries, documents)."""

_ROWS_AT_ONCE = 1024
_DEPTHS = (1, 10)


class Options(Section):
    """Options of the baselines, under `evaluate.baselines`; validation selects one pair of constants.

    Attributes:
        saturations: Candidates for k1 of BM25: how slowly the weight of a repeated word saturates.
        length_weights: Candidates for b of BM25: how strongly long documents are penalised.
    """

    saturations: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.6, 0.9, 1.2, 1.5, 2.0)
    length_weights: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.3, 0.5, 0.75)


@dataclass(frozen=True)
class Ranking:
    """The result of each query's search in the documents of all rows, each different document once.

    Attributes:
        rank: Rank of the query's own document, shape (n,), from 1; documents of equal score share their mean rank.
        best: Number of the first row of the document with the highest score, shape (n,).
        score: Score of the query's own document, shape (n,).
    """

    rank: Floats
    best: NDArray[np.intp]
    score: Floats


def search(scores: Callable[[slice], NDArray[Any]], rows: int, documents: Sequence[Any] | None = None) -> Ranking:
    """Rank each row's own document.

    Args:
        scores: Computes the scores of all documents for a part of the queries, shape (part, n).
        rows: Number of queries, n.
        documents: Texts or other keys of the documents, n; equal ones are one document. None: all differ.
    """
    keys = np.arange(rows) if documents is None else np.unique(np.asarray(documents), return_inverse=True)[1].ravel()
    firsts, place = np.unique(keys, return_index=True)[1], keys
    rank, best, own_score = np.empty(rows), np.empty(rows, np.intp), np.empty(rows)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, rows))
        values = np.asarray(scores(part), float)[:, firsts]
        own = values[np.arange(len(values)), place[part]]
        higher = (values > own[:, None]).sum(axis=1)
        equal = (values == own[:, None]).sum(axis=1)
        rank[part], best[part], own_score[part] = higher + (equal + 1) / 2, firsts[values.argmax(axis=1)], own
    return Ranking(rank, best, own_score)


def search_embeddings(queries: NDArray[Any], documents: NDArray[Any], keys: Sequence[Any] | None = None) -> Ranking:
    """Rank by the cosine of unit vectors, both (n, D); `keys` as `documents` of `search`."""
    columns = np.asarray(documents, float).T
    return search(lambda part: np.asarray(queries[part], float) @ columns, len(queries), keys)


def retrieval_metrics() -> list[Metric]:
    """Return the mean reciprocal rank, and the share of rows with their own document in first place or the first ten.

    All use the column `rank`: in every resample the documents are those of the whole split.
    """

    def mean(metric: Callable[[Floats], Floats]) -> Score:
        return lambda columns, index: metric(np.asarray(columns["rank"], float))[index].mean(axis=1)

    def within(depth: int) -> Callable[[Floats], Floats]:
        return lambda rank: (rank <= depth).astype(float)

    recalls = [Metric(f"recall_at_{depth}", mean(within(depth))) for depth in _DEPTHS]
    return [Metric("mean_reciprocal_rank", mean(lambda rank: 1 / rank)), *recalls]


def reciprocal_rank(ranking: Ranking) -> float:
    """Return the mean reciprocal rank of all queries."""
    return float((1 / ranking.rank).mean())


def word_search(
    train: pd.DataFrame, validation: pd.DataFrame, query: str, document: str, options: Mapping[str, Any]
) -> dict[str, Callable[[pd.DataFrame], Ranking]]:
    """Fit `bm25` (Robertson & Walker 1994) and `tfidf` over stems of English words, without stop words.

    The weights of TF-IDF come from the training split. Those of BM25 come from the searched documents, as in
    any search engine, and its two constants from validation. `query` and `document` are names of columns.

    Raises:
        UserError: `options` do not fit `Options`, or the training split has no words.
    """
    checked = check_options(Options, options)

    def rank(scorer: Scorer, frame: pd.DataFrame) -> Ranking:
        texts = frame[document].tolist()
        different = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        scores = scorer(frame[query].tolist(), list(different))[:, [different[text] for text in texts]]
        return search(lambda part: scores[part], len(frame), texts)

    candidates = [bm25(k1, b) for k1, b in product(checked.saturations, checked.length_weights)]
    best = max(candidates, key=lambda scorer: reciprocal_rank(rank(scorer, validation)))
    tfidf = TfidfVectors([*train[query], *train[document]]).all_cosines
    return {"bm25": lambda frame: rank(best, frame), "tfidf": lambda frame: rank(tfidf, frame)}


def bm25(saturation: float, length_weight: float) -> Scorer:
    """Return BM25 as in Lucene (Kamphuis et al. 2020), by bm25s."""

    def scores(queries: Sequence[str], documents: Sequence[str]) -> NDArray[Any]:
        import bm25s

        index = bm25s.BM25(k1=saturation, b=length_weight, method="lucene")
        index.index([stems(text) or [""] for text in documents], show_progress=False)
        zeros = np.zeros(len(documents), np.float32)
        return np.stack([index.get_scores(words) if (words := stems(text)) else zeros for text in queries])

    return scores


def reranked(
    queries: Sequence[Any], scores: Floats, relevant: NDArray[np.bool_], first_ranks: NDArray[Any], depth: int
) -> Floats:
    """Return the rank of each document of a first stage after the best `depth` of each query were scored again.

    Documents are ranked by falling score among those of the query within `depth`, without other relevant ones; equal
    scores share their mean rank. A document beyond `depth` keeps its rank of the first stage.

    Args:
        queries: The query of each row, n of them.
        scores: New scores, shape (n,).
        relevant: Whether each document is relevant, shape (n,).
        first_ranks: Ranks in the first stage, from 1, shape (n,).
        depth: Documents that are scored again.
    """
    groups: dict[Any, list[int]] = {}
    for row, query in enumerate(queries):
        groups.setdefault(query, []).append(row)
    ranks = np.asarray(first_ranks, float).copy()
    for members in groups.values():
        within = np.array([row for row in members if first_ranks[row] <= depth], np.intp)
        others = scores[within[~relevant[within]]]
        for row in within.tolist():
            rivals = others if relevant[row] else scores[within[within != row]]
            ranks[row] = 1 + (rivals > scores[row]).sum() + (rivals == scores[row]).sum() / 2
    return ranks


def reranking_metrics() -> list[Metric]:
    """Return the mean reciprocal rank and recalls over the rows where `is_relevant` is 1; 0 in a draw without one."""

    def mean(values: Callable[[Columns], Floats]) -> Score:
        def score(columns: Columns, index: NDArray[np.intp]) -> Floats:
            weights = columns["is_relevant"]
            sums = (values(columns) * weights)[index].sum(axis=1)
            return np.asarray(sums / np.maximum(1, weights[index].sum(axis=1)))

        return score

    def within(depth: int) -> Score:
        return mean(lambda columns: (columns["rank"] <= depth).astype(float))

    first = Metric("mean_reciprocal_rank", mean(lambda columns: columns["reciprocal_rank"]))
    return [first, Metric("recall_at_1", within(1)), Metric("recall_at_3", within(3))]
