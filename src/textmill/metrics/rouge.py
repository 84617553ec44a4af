"""ROUGE of short texts against one or more true ones (Lin 2004), by rouge-score, and what they are told with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.metrics.base import Metric, Section
from textmill.text.sentences import Units, unit_texts

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

NAMES = ("rouge1", "rouge2", "rougeL")
MOST_LEADING = 4
TEXT = (
    "ROUGE is the F1 of common words, pairs of words and longest common subsequences with a reference, stemmed; "
    "of several references the nearest counts, for each figure by itself."
)


def scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str] = NAMES
) -> NDArray[np.float64]:
    """The figures of each text, 0 to 100, shape (texts, names): the best F1 over its references."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(list(names), tokenizer=DefaultTokenizer(use_stemmer=True))
    found = np.zeros((len(texts), len(names)))
    for row, (text, true) in enumerate(zip(texts, references, strict=True)):
        best = scorer.score_multi(list(true), text)
        found[row] = [100 * best[name].fmeasure for name in names]
    return found


def references_of(frame: pd.DataFrame, target: str) -> list[list[str]]:
    """The true texts of each row: those in the column `references` where there are any, else the target."""
    several = frame["references"].tolist() if "references" in frame else [None] * len(frame)
    return [
        (json.loads(value) if isinstance(value, str) else None) or [true]
        for value, true in zip(several, frame[target].tolist(), strict=True)
    ]


def table(frame: pd.DataFrame, target: str, texts: Sequence[str]) -> pd.DataFrame:
    """`id`, `text`, the target, `prediction` and its three figures, one row a row of `frame`."""
    import pandas as pd

    columns: dict[str, Any] = {name: frame[name].to_numpy() for name in ("id", "text", target)}
    found = scores(texts, references_of(frame, target))
    return pd.DataFrame({**columns, "prediction": list(texts), **dict(zip(NAMES, found.T, strict=True))})


def metrics() -> list[Metric]:
    """The means over the rows."""

    def mean(name: str) -> Callable[[Mapping[str, NDArray[Any]], NDArray[np.intp]], NDArray[np.float64]]:
        return lambda columns, index: columns[name][index].mean(axis=1)

    return [Metric(name, mean(name)) for name in NAMES]


def lead_baseline(validation: pd.DataFrame, target: str, units: Units) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The first units of a text, as many as are best on validation by the mean of the three figures."""

    def leading(frame: pd.DataFrame, count: int) -> list[str]:
        return [" ".join(unit_texts(text, units)[:count]) for text in frame["text"].tolist()]

    references = references_of(validation, target)
    best = max(
        range(1, MOST_LEADING + 1), key=lambda count: float(scores(leading(validation, count), references).mean())
    )
    return lambda frame: table(frame, target, leading(frame, best))


def worst(predictions: pd.DataFrame, target: str) -> pd.DataFrame:
    """The texts furthest from their references, by the mean of the three figures."""
    found = predictions[["id", "text", target, "prediction", *NAMES]]
    order = found[list(NAMES)].mean(axis=1).sort_values(kind="stable").index
    return found.loc[order].reset_index(drop=True)


def section(predictions: pd.DataFrame, target: str, rows: int = 8) -> Section:
    """Some rows as they come."""
    step = max(1, len(predictions) // rows)
    shown = predictions.iloc[::step].head(rows)[["text", target, "prediction"]].reset_index(drop=True)
    return Section("Examples", f"Every {step}th row of the test split. {TEXT}", shown)
