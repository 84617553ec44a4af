"""Exact match and F1 of answers that are passages of a text, as SQuAD defines them (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.metrics.base import Metric, Section
from textmill.text.alignment import Alignment
from textmill.text.answers import read_answers

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from textmill.metrics.spans import Spans

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SUREST = 500.0  # beyond it the exponential is too large for a float
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space: the official script's way."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, true: Sequence[str]) -> float:
    """1 if the normalised answer is one of the true ones, else 0; without true ones the empty answer is right."""
    return float(normalise(answer) in _usable(true))


def f1(answer: str, true: Sequence[str]) -> float:
    """The highest F1 over words with any of the true answers; without true ones 1 for an empty answer, else 0."""
    words = normalise(answer).split()
    return max(_overlap(words, other.split()) for other in _usable(true))


def _usable(true: Sequence[str]) -> list[str]:
    """Normalised answers, of which those that become empty say nothing; an empty one where there is no other."""
    return [normal for answer in true if (normal := normalise(answer))] or [""]


def _overlap(words: list[str], others: list[str]) -> float:
    if not words or not others:
        return float(words == others)
    common = sum((Counter(words) & Counter(others)).values())
    return 2 * common / (len(words) + len(others))


def scores(answers: Sequence[str], true: Sequence[Sequence[str]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact match and F1 of each row, both of shape (rows,)."""
    pairs = list(zip(answers, true, strict=True))
    return np.array([exact_match(*pair) for pair in pairs]), np.array([f1(*pair) for pair in pairs])


def true_texts(value: Any, context: str) -> list[str]:
    """The true answers that a cell of the column `answers` holds."""
    return [answer.text for answer in read_answers(value if isinstance(value, str) else None, context)]


def passages_of(contexts: Sequence[str], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> list[str]:
    """A passage of each text."""
    places = zip(contexts, starts.tolist(), ends.tolist(), strict=True)
    return [text[start:end] for text, start, end in places]


def passage_table(
    frame: pd.DataFrame, start: NDArray[np.int64], end: NDArray[np.int64], margin: NDArray[np.float64]
) -> pd.DataFrame:
    """Questions beside the passages that are given as answers, those of positive margin, and their figures.

    Args:
        frame: With `id`, `question`, `context` and `answers`.
        start: Where the passage of each row begins, shape (rows,).
        end: The position after it.
        margin: By how much it is preferred to no answer.
    """
    import pandas as pd

    given = margin > 0
    start, end = np.where(given, start, 0), np.where(given, end, 0)
    contexts = frame["context"].tolist()
    texts = passages_of(contexts, start, end)
    true = [true_texts(*pair) for pair in zip(frame["answers"].tolist(), contexts, strict=True)]
    exact, overlap = scores(texts, true)
    return pd.DataFrame(
        {
            "id": frame["id"].to_numpy(),
            "question": frame["question"].to_numpy(),
            "answers": frame["answers"].to_numpy(),
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
    """The answers that are not wholly right; first those furthest from the true ones and given most surely."""
    wrong = predictions[predictions["f1"] < 1]
    order = wrong["margin"].abs().mul(1 - wrong["f1"]).sort_values(ascending=False, kind="stable").index
    shown = wrong[["id", "question", "true_answers", "prediction", "f1", "margin"]]
    return shown.loc[order].reset_index(drop=True)


def passage_records(spans: Spans, contexts: Sequence[str], given: Sequence[str]) -> list[dict[str, Any]]:
    """Natural answers: `answer`, its `start` and `end` in the text as it was given, and `score`.

    Args:
        spans: The best passages in the clean texts.
        contexts: These texts.
        given: The same as they were given.
    """
    scores = 1 / (1 + np.exp(-np.minimum(np.abs(spans.margin), _SUREST)))
    records = []
    for row, (clean, text) in enumerate(zip(contexts, given, strict=True)):
        start = end = 0
        if spans.margin[row] > 0:
            start, end = int(spans.start[row]), int(spans.end[row])
            if text != clean:
                start, end = Alignment(text, clean).given_span(start, end)
        records.append({"answer": text[start:end], "start": start, "end": end, "score": float(scores[row])})
    return records


def passage_metrics() -> list[Metric]:
    """F1 and exact match over all rows, and over those with and without an answer apart."""

    def mean(column: str, which: int | None = None) -> Callable[..., NDArray[np.float64]]:
        def score(columns: Mapping[str, NDArray[Any]], index: NDArray[np.intp]) -> NDArray[np.float64]:
            values = columns[column].astype(float)
            if which is None:
                found: NDArray[np.float64] = values[index].mean(axis=1)
                return found
            chosen = (columns["answerable"] == which).astype(float)
            # a draw without such rows counts as 0
            return np.asarray((values * chosen)[index].sum(axis=1) / np.maximum(1, chosen[index].sum(axis=1)))

        return score

    return [
        Metric("f1", mean("f1")),
        Metric("exact_match", mean("exact_match")),
        Metric("f1/with answer", mean("f1", 1)),
        Metric("exact_match/with answer", mean("exact_match", 1)),
        Metric("f1/without answer", mean("f1", 0)),
        Metric("exact_match/without answer", mean("exact_match", 0)),
    ]


def passage_sections(predictions: pd.DataFrame) -> list[Section]:
    """How often an answer is given where there is one, and where there is none."""
    import pandas as pd

    given = predictions["prediction"] != ""
    rows = [
        {
            "there is": name,
            "rows": int(which.sum()),
            "answered": int((which & given).sum()),
            "answered rightly": int((which & given & (predictions["exact_match"] == 1)).sum()),
            "not answered": int((which & ~given).sum()),
        }
        for name, which in (
            ("an answer", predictions["answerable"] == 1),
            ("no answer", predictions["answerable"] == 0),
        )
    ]
    text = (
        "Whether the model answers where it should. The margin above which it gives an answer was chosen on validation."
    )
    return [Section("Answering and declining", text, pd.DataFrame(rows))]
