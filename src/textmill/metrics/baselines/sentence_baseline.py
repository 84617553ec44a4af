"""Baselines of question answering: no answer, and the sentence most similar to the question."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from textmill.config.section import Section
from textmill.metrics.baselines.options import WORD, check_options, no_words
from textmill.metrics.passages import passage_table
from textmill.metrics.spans import best_margin

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_END = re.compile(r"(?<=[.!?])\s+|\n\s*")  # lines end paragraphs and items of lists

Passages = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.float64]"]
"""Start and end of the best sentence of each row, and its similarity to the question."""


class Options(Section):
    """Options of the baselines, under `evaluate.baselines`.

    Attributes:
        max_ngram: Largest number of words in a feature.
        min_rows: Smallest number of texts with a feature.
    """

    max_ngram: Annotated[int, Field(ge=1, le=5)] = 1
    min_rows: Annotated[int, Field(ge=1)] = 1


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each sentence of a text."""
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
    """Fit `no_answer`, and `best_sentence`: the most similar sentence, above a threshold of the highest validation F1.

    Raises:
        UserError: `options` do not fit `Options`, or the training split has no words.
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
    """Fit TF-IDF weights to `contexts`; return a function from rows to the sentence most similar to each question."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    checked = check_options(Options, options)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, checked.max_ngram), min_df=checked.min_rows, sublinear_tf=True, token_pattern=WORD
    )
    unique = list(dict.fromkeys(contexts))
    try:
        vectorizer.fit([text[start:end] for text in unique for start, end in sentences(text)])
    except ValueError as error:
        raise no_words(error, "Lower min_rows") from error

    def passages(frame: pd.DataFrame) -> Passages:
        spans = [list(sentences(text)) or [(0, len(text))] for text in frame["context"]]
        questions = vectorizer.transform(frame["question"])
        counts = list(map(len, spans))
        texts = [text[start:end] for text, of in zip(frame["context"], spans, strict=True) for start, end in of]
        of_row = np.repeat(np.arange(len(spans)), counts)
        similarity = np.asarray(vectorizer.transform(texts).multiply(questions[of_row]).sum(axis=1)).ravel()
        best = [
            max(range(first, first + count), key=similarity.__getitem__)
            for first, count in zip(np.cumsum([0, *counts[:-1]]).tolist(), counts, strict=True)
        ]
        flat = np.array([span for of_text in spans for span in of_text], np.int64)
        return flat[best, 0], flat[best, 1], similarity[best]

    return passages
