"""ROUGE of summaries (Lin 2004), by rouge-score, with baseline, tables and report section."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.metrics.base import Metric, Section, mean_of
from textmill.text.sentences import Units, unit_texts

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

NAMES = ("rouge1", "rouge2", "rougeL")
MOST_LEADING = 4
TEXT = (
    "ROUGE is the F1 of stemmed words, pairs of words and longest common subsequences with a reference. "
    "With several references, each metric takes the highest value."
)


def scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str] = NAMES
) -> NDArray[np.float64]:
    """Return ROUGE of each text, 0 to 100, shape (texts, names): the highest F1 with its references."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(list(names), tokenizer=DefaultTokenizer(use_stemmer=True))
    values = np.zeros((len(texts), len(names)))
    for row, (text, true) in enumerate(zip(texts, references, strict=True)):
        best = scorer.score_multi(list(true), text)
        values[row] = [100 * best[name].fmeasure for name in names]
    return values


def references_of(frame: pd.DataFrame, target: str) -> list[list[str]]:
    """Return the references of each row: the column `references` where it is filled, else the target."""
    several = frame["references"].tolist() if "references" in frame else [None] * len(frame)
    return [
        (json.loads(value) if isinstance(value, str) else None) or [true]
        for value, true in zip(several, frame[target].tolist(), strict=True)
    ]


def table(frame: pd.DataFrame, target: str, texts: Sequence[str]) -> pd.DataFrame:
    """Return `id`, `text`, the target, `prediction` and the three metrics of each row of `frame`."""
    import pandas as pd

    columns: dict[str, Any] = {name: frame[name].to_numpy() for name in ("id", "text", target)}
    values = scores(texts, references_of(frame, target))
    return pd.DataFrame({**columns, "prediction": list(texts), **dict(zip(NAMES, values.T, strict=True))})


def metrics() -> list[Metric]:
    """Return the means of the three metrics."""
    return [Metric(name, mean_of(name)) for name in NAMES]


def lead_baseline(validation: pd.DataFrame, target: str, units: Units) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Return the baseline of a text's first units, their number chosen by mean ROUGE on validation."""

    def leading(frame: pd.DataFrame, count: int) -> list[str]:
        return [" ".join(unit_texts(text, units)[:count]) for text in frame["text"].tolist()]

    references = references_of(validation, target)
    best = max(
        range(1, MOST_LEADING + 1), key=lambda count: float(scores(leading(validation, count), references).mean())
    )
    return lambda frame: table(frame, target, leading(frame, best))


def worst(predictions: pd.DataFrame, target: str) -> pd.DataFrame:
    """Return the rows by rising mean of the three metrics."""
    table = predictions[["id", "text", target, "prediction", *NAMES]]
    order = table[list(NAMES)].mean(axis=1).sort_values(kind="stable").index
    return table.loc[order].reset_index(drop=True)


def section(predictions: pd.DataFrame, target: str, rows: int = 8) -> Section:
    """Return the section with rows at regular intervals."""
    step = max(1, len(predictions) // rows)
    shown = predictions.iloc[::step].head(rows)[["text", target, "prediction"]].reset_index(drop=True)
    return Section("Examples", f"Every {step}th row of the test split. {TEXT}", shown)
