"""Exact match and F1 of passages as answers, as SQuAD defines them (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.metrics.base import Columns, Metric, Score, Section, mean_of
from textmill.text.alignment import Alignment
from textmill.text.answers import read_answers

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from textmill.metrics.spans import Spans

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LARGEST = 500.0
"""A margin whose exponential is finite in double precision."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Return the answer in lower case, without punctuation, articles and extra white space, as SQuAD's script does."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, true: Sequence[str]) -> float:
    """Return 1 if the normalised answer is among the true ones, else 0; without true ones "" is correct."""
    return float(normalise(answer) in _usable(true))


def f1(answer: str, true: Sequence[str]) -> float:
    """Return the highest F1 of words with a true answer; without true ones 1 for "", else 0."""
    words = normalise(answer).split()
    return max(_overlap(words, other.split()) for other in _usable(true))


def _usable(true: Sequence[str]) -> list[str]:
    """Return the normalised answers that are not empty; [""] where there is none."""
    return [normal for answer in true if (normal := normalise(answer))] or [""]


def _overlap(words: list[str], others: list[str]) -> float:
    if not words or not others:
        return float(words == others)
    common = sum((Counter(words) & Counter(others)).values())
    return 2 * common / (len(words) + len(others))


def scores(answers: Sequence[str], true: Sequence[Sequence[str]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return exact match and F1 of each row, both of shape (rows,)."""
    pairs = list(zip(answers, true, strict=True))
    return np.array([exact_match(*pair) for pair in pairs]), np.array([f1(*pair) for pair in pairs])


def true_texts(value: Any, context: str) -> list[str]:
    """Return the true answers in a cell of the column `answers`."""
    return [answer.text for answer in read_answers(value if isinstance(value, str) else None, context)]


def passages_of(contexts: Sequence[str], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> list[str]:
    """Return the passage of each text from start to end."""
    places = zip(contexts, starts.tolist(), ends.tolist(), strict=True)
    return [text[start:end] for text, start, end in places]


def passage_table(
    frame: pd.DataFrame, start: NDArray[np.int64], end: NDArray[np.int64], margin: NDArray[np.float64]
) -> pd.DataFrame:
    """Return questions, the passages of positive margin as their answers, and the metrics of each row.

    Args:
        frame: Rows with `id`, `question`, `context` and `answers`.
        start: First position of each row's passage, shape (rows,).
        end: Position after the passage, shape (rows,).
        margin: Score of the passage above that of no answer, shape (rows,).
    """
    import pandas as pd

    start, end = np.where(margin > 0, start, 0), np.where(margin > 0, end, 0)
    contexts = frame["context"].tolist()
    texts = passages_of(contexts, start, end)
    true = [true_texts(*pair) for pair in zip(frame["answers"].tolist(), contexts, strict=True)]
    exact, overlap = scores(texts, true)
    return pd.DataFrame(
        {
            **{name: frame[name].to_numpy() for name in ("id", "question", "answers")},
            "true_answers": [" | ".join(dict.fromkeys(answers)) for answers in true],
            "prediction": texts,
            "start": start,
            "end": end,
            "margin": margin.astype(float),
            "answerable": np.array([int(bool(answers)) for answers in true]),
            "exact_match": exact,
            "f1": overlap,
        }
    )


def passage_errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the answers with F1 below 1, ordered by lost F1 times the size of the margin."""
    wrong = predictions[predictions["f1"] < 1]
    order = wrong["margin"].abs().mul(1 - wrong["f1"]).sort_values(ascending=False, kind="stable").index
    shown = wrong[["id", "question", "true_answers", "prediction", "f1", "margin"]]
    return shown.loc[order].reset_index(drop=True)


def passage_records(spans: Spans, contexts: Sequence[str], raw: Sequence[str]) -> list[dict[str, Any]]:
    """Return natural answers: `answer`, its `start` and `end` in the raw text, and `score`.

    `spans` are passages of the cleaned texts `contexts`; `raw` are the same texts before cleaning.
    """
    scores = 1 / (1 + np.exp(-np.minimum(np.abs(spans.margin), _LARGEST)))
    records = []
    for row, (clean, text) in enumerate(zip(contexts, raw, strict=True)):
        start = end = 0
        if spans.margin[row] > 0:
            start, end = int(spans.start[row]), int(spans.end[row])
            if text != clean:
                start, end = Alignment(text, clean).given_span(start, end)
        records.append({"answer": text[start:end], "start": start, "end": end, "score": float(scores[row])})
    return records


def passage_metrics() -> list[Metric]:
    """Return F1 and exact match over all rows, and over those with and those without an answer."""

    def mean_where(column: str, answerable: int) -> Score:
        def score(columns: Columns, index: NDArray[np.intp]) -> NDArray[np.float64]:
            weights = (columns["answerable"] == answerable).astype(float)
            sums = (columns[column] * weights)[index].sum(axis=1)
            return np.asarray(sums / np.maximum(1, weights[index].sum(axis=1)))  # 0 in a draw without such rows

        return score

    names = ("f1", "exact_match")
    groups = (("with answer", 1), ("without answer", 0))
    parts = [Metric(f"{name}/{group}", mean_where(name, value)) for group, value in groups for name in names]
    return [*(Metric(name, mean_of(name)) for name in names), *parts]


def passage_sections(predictions: pd.DataFrame) -> list[Section]:
    """Return the section on rows answered and declined, with and without a true answer."""
    import pandas as pd

    answered, correct = predictions["prediction"] != "", predictions["exact_match"] == 1
    groups = (("an answer", predictions["answerable"] == 1), ("no answer", predictions["answerable"] == 0))
    rows = [
        {
            "there is": name,
            "rows": int(group.sum()),
            "answered": int((group & answered).sum()),
            "answered correctly": int((group & answered & correct).sum()),
            "not answered": int((group & ~answered).sum()),
        }
        for name, group in groups
    ]
    text = "How often the model answers where it should. Validation chose the margin above which it answers."
    return [Section("Answering and declining", text, pd.DataFrame(rows))]
