"""Baselines of a reader without a network: no answer, and the sentence that shares most with the question."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from textmill.config.section import Section
from textmill.errors import UserError
from textmill.metrics.baselines.options import check_options
from textmill.metrics.passages import passage_table
from textmill.metrics.spans import best_margin

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

# A sentence ends at its sign before white space, and a paragraph or an entry of a list at its line's end
_END = re.compile(r"(?<=[.!?])\s+|\n\s*")
_WORD = r"(?u)\b\w+\b"

Passages = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.float64]"]
"""Where the best sentence of each row begins and ends, and its similarity to the question."""


class Options(Section):
    """Options of the baselines, under `evaluate.baselines`.

    Attributes:
        max_ngram: Longest run of words that counts as a feature.
        min_rows: A feature must occur in this many texts.
    """

    max_ngram: Annotated[int, Field(ge=1, le=5)] = 1
    min_rows: Annotated[int, Field(ge=1)] = 1


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence of a text begins and ends."""
    start = 0
    for gap in _END.finditer(text):
        if text[start : gap.start()].strip():
            yield start, gap.start()
        start = gap.end()
    if text[start:].strip():
        yield start, len(text)


def fit_baselines(
    train: pd.DataFrame, validation: pd.DataFrame, options: Mapping[str, Any]
) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
    """`no_answer` to any question, and `best_sentence`: the one nearest to the question, where it is near enough.

    How near it must be is chosen on validation, for the highest F1.
    """
    sentence = fit(train["context"].tolist(), options)
    start, end, similarity = sentence(validation)
    always = passage_table(validation, start, end, np.ones(len(validation)))
    limit = best_margin(similarity, always["f1"].to_numpy(float), 1.0 - always["answerable"].to_numpy(float))

    def no_answer(frame: pd.DataFrame) -> pd.DataFrame:
        nowhere = np.zeros(len(frame), np.int64)
        return passage_table(frame, nowhere, nowhere, np.full(len(frame), -1.0))

    def best_sentence(frame: pd.DataFrame) -> pd.DataFrame:
        start, end, similarity = sentence(frame)
        return passage_table(frame, start, end, similarity - limit)

    return {"no_answer": no_answer, "best_sentence": best_sentence}


def fit(contexts: Sequence[str], options: Mapping[str, Any]) -> Callable[[pd.DataFrame], Passages]:
    """Learn the words' weights (TF-IDF); gives a function from rows to the sentence nearest to each question.

    Args:
        contexts: Texts of the training split.
        options: See `Options`.

    Raises:
        UserError: `options` are not those of `Options`, or there are no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    checked = check_options(Options, options)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, checked.max_ngram), min_df=checked.min_rows, sublinear_tf=True, token_pattern=_WORD
    )
    unique = list(dict.fromkeys(contexts))
    try:
        vectorizer.fit([text[start:end] for text in unique for start, end in sentences(text)])
    except ValueError as error:  # scikit-learn's way to say that nothing is left
        fix = "Lower min_rows"
        raise UserError(
            f"the baseline finds no words in the training split ({error})", where="evaluate.baselines", fix=fix
        ) from error

    def passages(frame: pd.DataFrame) -> Passages:
        spans = [list(sentences(text)) or [(0, len(text))] for text in frame["context"]]
        questions = vectorizer.transform(frame["question"])
        counts = [len(found) for found in spans]
        texts = [text[start:end] for text, found in zip(frame["context"], spans, strict=True) for start, end in found]
        of_row = np.repeat(np.arange(len(spans)), counts)
        similarity = np.asarray(vectorizer.transform(texts).multiply(questions[of_row]).sum(axis=1)).ravel()
        best = [
            max(range(first, first + count), key=similarity.__getitem__)
            for first, count in zip(np.cumsum([0, *counts[:-1]]).tolist(), counts, strict=True)
        ]
        flat = np.array([span for found in spans for span in found], np.int64)
        return flat[best, 0], flat[best, 1], similarity[best]

    return passages
