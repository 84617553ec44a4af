"""Metrics of predicted sets of labels, each over many resamples at once, and thresholds by label.

They equal scikit-learn's for multi-label targets (0/0 counts as 0): `tests/code/test_label_sets.py` compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.metrics.base import Columns, Metric, Section, mean_of
from textmill.metrics.categories import Counter, Counts, Floats, Integers, f1, precision, ratio, recall, weighted_f1
from textmill.text.label_lists import write_labels

if TYPE_CHECKING:
    import pandas as pd

_TRUE, _PREDICTED, _PROBABILITY = "true_", "predicted_", "probability_"


def label_set_metrics(labels: Sequence[str]) -> list[Metric]:
    """Return metrics of a `label_set_table`, macro F1 first; those of a single label are named `METRIC/LABEL`."""
    counter = Counter(lambda columns, index: count(*_matrices(columns, labels), index))
    return [
        Metric("macro_f1", counter.score(macro_f1)),
        Metric("micro_f1", counter.score(micro_f1)),
        Metric("weighted_f1", counter.score(weighted_f1)),
        Metric("exact_match", mean_of("exact_match")),
        Metric("log_loss", mean_of("log_loss"), higher_is_better=False),
        *counter.of_labels(labels),
    ]


def macro_f1(counts: Counts) -> Floats:
    """Return the mean F1 of all labels, shape (resamples,)."""
    return np.asarray(f1(counts).mean(axis=1))


def micro_f1(counts: Counts) -> Floats:
    """Return F1 over all pairs of row and label, shape (resamples,)."""
    return ratio(2 * counts.hits.sum(axis=1), (counts.predicted + counts.actual).sum(axis=1))


def count(actual: NDArray[Any], predicted: NDArray[Any], index: Integers) -> Counts:
    """Count hits, predicted and actual rows of each label in each resample.

    Args:
        actual: Whether each row has each label, shape (n, labels).
        predicted: Whether each label is predicted, shape (n, labels).
        index: Rows of each resample, shape (resamples, m).
    """
    resamples, rows = len(index), len(actual)
    cells = (index + np.arange(resamples)[:, None] * rows).ravel()
    weights = np.bincount(cells, minlength=resamples * rows).reshape(resamples, rows).astype(float)
    one, other = actual.astype(float), predicted.astype(float)
    return Counts(weights @ (one * other), weights @ other, weights @ one)


def best_thresholds(logits: NDArray[Any], actual: NDArray[Any]) -> Floats:
    """Return for each label the threshold of its logits with the highest F1, shape (labels,).

    It lies between two neighbouring logits. A label without a row gets the threshold of the highest micro F1.

    Args:
        logits: Scores, shape (n, labels).
        actual: Whether each row has each label, shape (n, labels).
    """
    common = _best_threshold(logits.ravel(), actual.ravel())
    columns = zip(logits.T, actual.T, strict=True)
    return np.array([_best_threshold(scores, true) if true.any() else common for scores, true in columns])


def _best_threshold(scores: NDArray[Any], actual: NDArray[Any]) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked = np.append(np.asarray(scores, float)[order], -np.inf)
    hits, predicted = np.cumsum(actual[order].astype(float)), np.arange(1, len(order) + 1)
    values = 2 * hits / np.maximum(1, predicted + hits[-1])
    values[ranked[:-1] == ranked[1:]] = -1  # equal scores are above a threshold together or not at all
    best = int(values.argmax())
    below = ranked[best + 1] if np.isfinite(ranked[best + 1]) else ranked[best] - 1
    return float((ranked[best] + below) / 2)


def log_losses(logits: NDArray[Any], actual: NDArray[Any]) -> Floats:
    """Return the binary cross-entropy of each row, the mean over the labels, shape (n,)."""
    values = np.asarray(logits, float)
    return np.asarray((np.logaddexp(0, values) - values * actual).mean(axis=1))


def probabilities(logits: NDArray[Any]) -> Floats:
    """Return the logistic function of logits, in double precision."""
    from scipy.special import expit

    return np.asarray(expit(np.asarray(logits, float)))


def validation_metrics(logits: NDArray[Any], actual: NDArray[Any]) -> tuple[dict[str, float], Floats]:
    """Return `macro_f1` and `micro_f1` at the best thresholds and `loss` (binary cross-entropy), and the thresholds."""
    thresholds = best_thresholds(logits, actual)
    counts = count(actual, logits > thresholds, np.arange(len(actual))[None])
    metrics = {"macro_f1": float(macro_f1(counts)[0]), "micro_f1": float(micro_f1(counts)[0])}
    return metrics | {"loss": float(log_losses(logits, actual).mean())}, thresholds


def label_set_table(
    logits: NDArray[Any], margins: NDArray[Any], actual: NDArray[Any], frame: pd.DataFrame, labels: Sequence[str]
) -> pd.DataFrame:
    """Return `frame` with `true` and `prediction`, both texts, `exact_match`, `log_loss`, and columns for each label.

    Args:
        logits: Scores, shape (n, labels).
        margins: Scores above the thresholds; a label is predicted where its margin is positive.
        actual: Whether each row has each label, shape (n, labels).
        frame: Columns to keep.
        labels: Names in the order of the scores.
    """
    import pandas as pd

    predicted = margins > 0
    table: dict[str, Any] = {str(name): frame[name].to_numpy() for name in frame}
    table |= {
        "true": [write_labels(_named(row, labels)) for row in actual],
        "prediction": [write_labels(_named(row, labels)) for row in predicted],
        "exact_match": (actual == predicted).all(axis=1).astype(float),
        "log_loss": log_losses(logits, actual),
    }
    shares = probabilities(logits)
    for position, label in enumerate(labels):
        table[_TRUE + label] = actual[:, position].astype(np.int8)
        table[_PREDICTED + label] = predicted[:, position].astype(np.int8)
        table[_PROBABILITY + label] = shares[:, position]
    return pd.DataFrame(table)


def label_set_answers(logits: NDArray[Any], margins: NDArray[Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return `prediction`, a text, the predicted `labels` and the `probabilities` of all labels, for each row."""
    answers = []
    for shares, row in zip(probabilities(logits).tolist(), margins > 0, strict=True):
        named = _named(row, labels)
        by_label = dict(zip(labels, shares, strict=True))
        answers.append({"prediction": write_labels(named), "labels": named, "probabilities": by_label})
    return answers


def never_predicted(predictions: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Return the labels that occur in a `label_set_table` and are never predicted."""
    return [name for name in labels if predictions[_TRUE + name].any() and not predictions[_PREDICTED + name].any()]


def label_set_sections(predictions: pd.DataFrame, labels: Sequence[str]) -> list[Section]:
    """Return the sections on labels that are never predicted, if any, and on every label."""
    import pandas as pd

    true, predicted = _matrices({str(name): predictions[name].to_numpy() for name in predictions}, labels)
    counts = count(true, predicted, np.arange(len(true))[None])
    table = pd.DataFrame(
        {
            "label": list(labels),
            "rows": counts.actual[0].astype(int),
            "predicted": counts.predicted[0].astype(int),
            **{name: of(counts)[0].round(4) for name, of in (("precision", precision), ("recall", recall), ("F1", f1))},
        }
    )
    sections = [Section("Labels", "Rows with each label in the test split, and the predictions of it.", table)]
    if missing := never_predicted(predictions, labels):
        text = f"The model never predicts: {write_labels(missing)}. Each of them occurs in the test split."
        sections.insert(0, Section("Labels that are never predicted", text))
    return sections


def label_set_errors(predictions: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows whose set of labels is wrong, by falling log loss."""
    wrong = predictions[predictions["exact_match"] == 0]
    shown = wrong[[*columns, "true", "prediction", "log_loss"]]
    return shown.sort_values(["log_loss", "id"], ascending=[False, True], kind="stable", ignore_index=True)


def _named(row: NDArray[Any], labels: Sequence[str]) -> list[str]:
    return [labels[position] for position in np.flatnonzero(row).tolist()]


def _matrices(columns: Columns, labels: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    true, predicted = (np.stack([columns[kind + name] for name in labels], axis=1) for kind in (_TRUE, _PREDICTED))
    return true, predicted
