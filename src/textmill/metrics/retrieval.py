"""How well texts find their own partner among the partners of all rows, and what word statistics find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from textmill.config.section import Section
from textmill.metrics.base import Metric
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
    """Options of the baselines, under `evaluate.baselines`; the best on validation stays.

    Attributes:
        saturations: k1 of BM25: from how many occurrences on more of them count little.
        length_weights: b of BM25: how much longer documents are held against shorter ones.
    """

    saturations: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.6, 0.9, 1.2, 1.5, 2.0)
    length_weights: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.3, 0.5, 0.75)


@dataclass(frozen=True)
class Found:
    """What each query found among the documents of all rows.

    Attributes:
        rank: Of its own document, shape (n,): 1 is the first; documents of equal score share their mean rank.
        best: Row number of the document with the highest score, shape (n,).
        score: Of its own document, shape (n,).
    """

    rank: Floats
    best: NDArray[np.intp]
    score: Floats


def search(scores: Callable[[slice], NDArray[Any]], rows: int) -> Found:
    """Rank each row's own document.

    Args:
        scores: Scores of all documents for a part of the queries, shape (part, n).
        rows: Number of queries, n.
    """
    rank, best, own_score = np.empty(rows), np.empty(rows, np.intp), np.empty(rows)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, rows))
        found = np.asarray(scores(part), float)
        own = found[np.arange(len(found)), np.arange(part.start, part.stop)]
        higher = (found > own[:, None]).sum(axis=1)
        equal = (found == own[:, None]).sum(axis=1)
        rank[part], best[part], own_score[part] = higher + (equal + 1) / 2, found.argmax(axis=1), own
    return Found(rank, best, own_score)


def search_embeddings(queries: NDArray[Any], documents: NDArray[Any]) -> Found:
    """`search` by the cosine of vectors of length 1, both (n, D), row by row."""
    columns = np.asarray(documents, float).T
    return search(lambda part: np.asarray(queries[part], float) @ columns, len(queries))


def retrieval_metrics() -> list[Metric]:
    """Mean reciprocal rank and the share of rows whose own document is the first, or among the first ten.

    All are over the column `rank`: the candidates stay those of the whole split in every resample.
    """

    def mean(figure: Callable[[Floats], Floats]) -> Callable[[Mapping[str, NDArray[Any]], NDArray[np.intp]], Floats]:
        return lambda columns, index: figure(np.asarray(columns["rank"], float))[index].mean(axis=1)

    def within(depth: int) -> Callable[[Floats], Floats]:
        return lambda rank: (rank <= depth).astype(float)

    recalls = [Metric(f"recall_at_{depth}", mean(within(depth))) for depth in _DEPTHS]
    return [Metric("mean_reciprocal_rank", mean(lambda rank: 1 / rank)), *recalls]


def reciprocal_rank(found: Found) -> float:
    """The mean over all queries."""
    return float((1 / found.rank).mean())


def word_search(
    train: pd.DataFrame, validation: pd.DataFrame, query: str, document: str, options: Mapping[str, Any]
) -> dict[str, Callable[[pd.DataFrame], Found]]:
    """`bm25` (Robertson & Walker 1994) and `tfidf` over the stems of English words, without stop words.

    The weights of TF-IDF's words come from the training split; those of BM25 from the documents that
    are searched, as in any search engine, and its two constants from validation.

    Args:
        train: Rows of the training split.
        validation: Rows of the validation split.
        query: Column of the texts that look for a partner.
        document: Column of their partners.
        options: See `Options`.
    """
    chosen = check_options(Options, options)

    def found_by(scorer: Scorer, frame: pd.DataFrame) -> Found:
        scores = scorer(frame[query].tolist(), frame[document].tolist())
        return search(lambda part: scores[part], len(frame))

    candidates = [bm25(k1, b) for k1, b in product(chosen.saturations, chosen.length_weights)]
    best = max(candidates, key=lambda scorer: reciprocal_rank(found_by(scorer, validation)))
    tfidf = TfidfVectors([*train[query], *train[document]]).all_cosines
    return {"bm25": lambda frame: found_by(best, frame), "tfidf": lambda frame: found_by(tfidf, frame)}


def bm25(saturation: float, length_weight: float) -> Scorer:
    """BM25 as in Lucene (Kamphuis et al. 2020), by bm25s."""

    def scores(queries: Sequence[str], documents: Sequence[str]) -> NDArray[Any]:
        import bm25s

        index = bm25s.BM25(k1=saturation, b=length_weight, method="lucene")
        index.index([stems(text) or [""] for text in documents], show_progress=False)
        nothing = np.zeros(len(documents), np.float32)
        return np.stack([index.get_scores(words) if (words := stems(text)) else nothing for text in queries])

    return scores
