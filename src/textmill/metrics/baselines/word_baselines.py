"""Baselines for categories over the segmented words of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from textmill.config.section import Section
from textmill.metrics.baselines.options import WORD, check_options, no_words
from textmill.metrics.categories import count, encode, weighted_f1

if TYPE_CHECKING:
    import pandas as pd

Probabilities = Callable[["pd.DataFrame"], NDArray[np.float64]]
"""From a frame to probabilities, shape (rows, labels)."""

Positive = Annotated[float, Field(gt=0)]
_TOLERANCE = 1e-3


class Options(Section):
    """Options of the baselines, under `evaluate.baselines`.

    Attributes:
        models: Models over TF-IDF of words, beside `majority`.
        strengths: Candidate inverse strengths of regularisation (C); validation selects one.
        max_ngram: Largest number of words in a feature.
        min_rows: Smallest number of texts with a feature.
        max_iterations: Largest number of iterations of the logistic regression's solver.
        smoothings: Candidate additions to every feature's weight in naive Bayes; validation selects one.
    """

    models: Annotated[tuple[Literal["logistic_regression", "naive_bayes"], ...], Field(min_length=1)] = (
        "logistic_regression",
    )
    strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    max_ngram: Annotated[int, Field(ge=1, le=5)] = 2
    min_rows: Annotated[int, Field(ge=1)] = 1
    max_iterations: Annotated[int, Field(ge=10)] = 200
    smoothings: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.03, 0.1, 0.3, 1.0)


def fit(
    train: pd.DataFrame, validation: pd.DataFrame, labels: Sequence[str], options: Mapping[str, Any], seed: int
) -> dict[str, Probabilities]:
    """Train `majority` and, for each of `Options.models`, `tfidf_MODEL` on the columns `words` and `label`.

    Raises:
        UserError: `options` do not fit `Options`, or the training split has no words.
    """
    checked = check_options(Options, options)
    fitted = {"majority": _majority(train, labels)}
    for name in checked.models:
        fitted[f"tfidf_{name}"] = _over_tfidf(name, train, validation, labels, checked, seed)
    return fitted


def _majority(train: pd.DataFrame, labels: Sequence[str]) -> Probabilities:
    """Return the labels' shares of the training split for every text."""
    share = np.bincount(encode(train["label"].to_numpy(), labels), minlength=len(labels)) / len(train)
    return lambda frame: np.tile(share, (len(frame), 1))


def _over_tfidf(
    name: str, train: pd.DataFrame, validation: pd.DataFrame, labels: Sequence[str], options: Options, seed: int
) -> Probabilities:
    """Fit a linear model over TF-IDF of words and n-grams, its regularisation chosen by validation's weighted F1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, options.max_ngram),
        min_df=options.min_rows,
        sublinear_tf=True,
        token_pattern=WORD,
        dtype=np.float32,
    )
    try:
        features = vectorizer.fit_transform(train["words"].tolist())
    except ValueError as error:
        raise no_words(error, "Lower min_rows, or choose another segmenter under prepare.words") from error
    held_out = vectorizer.transform(validation["words"].tolist())
    target = encode(train["label"].to_numpy(), labels)
    actual = encode(validation["label"].to_numpy(), labels)
    all_rows = np.arange(len(actual))[None]

    def score(probabilities: NDArray[np.float64]) -> float:
        return float(weighted_f1(count(actual, probabilities.argmax(axis=1), all_rows, len(labels)))[0])

    candidates = [
        _fit_linear(model, features, target, len(labels))
        for model in (_naive_bayes(options) if name == "naive_bayes" else _logistic_regression(options, seed))
    ]
    best = max(candidates, key=lambda predict: score(predict(held_out)))
    return lambda frame: best(vectorizer.transform(frame["words"].tolist()))


def _logistic_regression(options: Options, seed: int) -> list[Any]:
    from sklearn.linear_model import LogisticRegression

    # Newton's method is ten times faster than the default solver on wide sparse features.
    return [
        LogisticRegression(
            C=strength, solver="newton-cg", tol=_TOLERANCE, max_iter=options.max_iterations, random_state=seed
        )
        for strength in sorted(options.strengths)
    ]


def _naive_bayes(options: Options) -> list[Any]:
    """Return multinomial naive Bayes, which also fits TF-IDF weights well (Rennie et al. 2003)."""
    from sklearn.naive_bayes import MultinomialNB

    return [MultinomialNB(alpha=smoothing) for smoothing in sorted(options.smoothings)]


def _fit_linear(
    model: Any, features: Any, target: NDArray[np.intp], n_labels: int
) -> Callable[[Any], NDArray[np.float64]]:
    """Fit a model; return its function from features (rows, words) to probabilities (rows, labels)."""
    model.fit(features, target)

    def predict(rows: Any) -> NDArray[np.float64]:
        probabilities = np.zeros((rows.shape[0], n_labels))
        probabilities[:, model.classes_] = model.predict_proba(rows)
        return probabilities

    return predict
