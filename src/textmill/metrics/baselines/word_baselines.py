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
from textmill.metrics.label_sets import best_thresholds, validation_metrics

if TYPE_CHECKING:
    import pandas as pd

Probabilities = Callable[["pd.DataFrame"], NDArray[np.float64]]
"""From a frame to probabilities, shape (rows, labels)."""

LabelSets = Callable[["pd.DataFrame"], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""From a frame to logits and their margins over the thresholds, both of shape (rows, labels)."""

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
    vectorizer, features = fit_tfidf(train["words"].tolist(), options)
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


def fit_tfidf(texts: Sequence[str], options: Options) -> tuple[Any, Any]:
    """Fit a vectorizer to segmented texts; return it and their features (rows, words).

    Raises:
        UserError: The texts have no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, options.max_ngram),
        min_df=options.min_rows,
        sublinear_tf=True,
        token_pattern=WORD,
        dtype=np.float32,
    )
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError as error:
        raise no_words(error, "Lower min_rows, or choose another segmenter under prepare.words") from error


def fit_label_sets(
    train: pd.DataFrame,
    validation: pd.DataFrame,
    target: NDArray[np.bool_],
    actual: NDArray[np.bool_],
    options: Mapping[str, Any],
    seed: int,
) -> dict[str, LabelSets]:
    """Fit `label_shares` and `tfidf_one_against_rest`: a logistic regression for each label over the column `words`.

    Validation selects the strength with the highest macro F1, and the threshold of each label.

    Args:
        train: Rows of the training split.
        validation: Rows of the validation split.
        target: Whether each training row has each label, shape (rows, labels).
        actual: The same of validation.
        options: Values of `Options`.
        seed: Seed of the solver.

    Raises:
        UserError: `options` do not fit `Options`, or the training split has no words.
    """
    checked = check_options(Options, options)
    vectorizer, features = fit_tfidf(train["words"].tolist(), checked)
    held_out = vectorizer.transform(validation["words"].tolist())
    shares = np.clip(target.mean(axis=0), 1e-6, 1 - 1e-6)
    common = np.log(shares / (1 - shares))

    def fit_labels(strength: float) -> list[Any]:
        one = checked.model_copy(update={"strengths": (strength,)})
        return [
            _logistic_regression(one, seed)[0].fit(features, column) if 0 < column.sum() < len(column) else None
            for column in target.T
        ]

    def logits(models: Sequence[Any], rows: Any) -> NDArray[np.float64]:
        constant = (np.full(rows.shape[0], value) for value in common)
        each = zip(models, constant, strict=True)
        return np.stack([model.decision_function(rows) if model else value for model, value in each], axis=1)

    fitted = [fit_labels(strength) for strength in sorted(checked.strengths)]
    best = max(fitted, key=lambda models: validation_metrics(logits(models, held_out), actual)[0]["macro_f1"])
    limits = best_thresholds(logits(best, held_out), actual)
    simple = best_thresholds(np.tile(common, (len(actual), 1)), actual)

    def linear(frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values = logits(best, vectorizer.transform(frame["words"].tolist()))
        return values, values - limits

    def constant(frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values = np.tile(common, (len(frame), 1))
        return values, values - simple

    return {"label_shares": constant, "tfidf_one_against_rest": linear}


def fit_numbers(
    train: pd.DataFrame,
    validation: pd.DataFrame,
    target: NDArray[np.float64],
    actual: NDArray[np.float64],
    options: Mapping[str, Any],
) -> dict[str, Callable[[pd.DataFrame], NDArray[np.float64]]]:
    """Fit `mean`, and `tfidf_ridge`: ridge regression over the column `words`, its strength of the lowest error.

    Args:
        train: Rows of the training split.
        validation: Rows of the validation split.
        target: Numbers of the training rows, shape (rows,).
        actual: Numbers of the validation rows.
        options: Values of `Options`.

    Raises:
        UserError: `options` do not fit `Options`, or the training split has no words.
    """
    from sklearn.linear_model import Ridge

    checked = check_options(Options, options)
    vectorizer, features = fit_tfidf(train["words"].tolist(), checked)
    held_out = vectorizer.transform(validation["words"].tolist())
    models = [Ridge(alpha=1 / strength).fit(features, target) for strength in sorted(checked.strengths)]
    best = min(models, key=lambda model: float(np.square(model.predict(held_out) - actual).mean()))
    mean = float(target.mean())
    return {
        "mean": lambda frame: np.full(len(frame), mean),
        "tfidf_ridge": lambda frame: np.asarray(best.predict(vectorizer.transform(frame["words"].tolist())), float),
    }


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
