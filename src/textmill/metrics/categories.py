"""Metrics of predicted categories, each over many resamples at once.

Every function works on counts per label or per confidence bin, so that the memory of a resample grows with
the number of labels or bins, not with its square. The metrics equal scikit-learn's where it has them
(0/0 counts as 0); `tests/code/test_evaluation_categories.py` compares both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textmill.metrics.base import Columns, Metric, Score
from textmill.text.labels import label_names

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION_BINS = 15
_OFFSETS = np.arange(-4.0, 4.01, 0.25)
"""Candidates of `best_offsets`, in nats."""

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]


class Counts(NamedTuple):
    """Rows of each label that are hits, predicted and actual; each of shape (resamples, labels)."""

    hits: Floats
    predicted: Floats
    actual: Floats


class Counter:
    """Metrics of counts, which are cached for the next metric of the same draws.

    Args:
        count: Counts the rows of a table's columns in each resample.
    """

    def __init__(self, count: Callable[[Columns, Integers], Counts]) -> None:
        self._count = count
        self._last: tuple[Columns, Integers, Counts] | None = None

    def __call__(self, columns: Columns, index: Integers) -> Counts:
        """Return the counts of these draws."""
        if self._last is None or self._last[0] is not columns or self._last[1] is not index:
            self._last = columns, index, self._count(columns, index)
        return self._last[2]

    def score(self, metric: Callable[[Counts], Floats]) -> Score:
        """Return a metric of the counts as one of columns and draws."""
        return lambda columns, index: metric(self(columns, index))

    def of_labels(self, labels: Sequence[str]) -> list[Metric]:
        """Return F1, precision and recall of each label, named `METRIC/LABEL`."""

        def of_label(metric: Callable[[Counts], Floats], position: int) -> Score:
            return self.score(lambda counts: metric(counts)[:, position])

        return [
            Metric(f"{name}/{label}", of_label(metric, position))
            for position, label in enumerate(labels)
            for name, metric in (("f1", f1), ("precision", precision), ("recall", recall))
        ]


class Bins(NamedTuple):
    """Number, mean confidence and accuracy of predictions in bins of confidence; each of shape (resamples, bins)."""

    rows: Floats
    confidence: Floats
    accuracy: Floats


def category_metrics(labels: Sequence[str]) -> list[Metric]:
    """Return metrics of the columns `label`, `prediction` and `probability_LABEL`, weighted F1 first.

    Metrics of a single label are named `METRIC/LABEL`.
    """

    def count_rows(columns: Columns, index: Integers) -> Counts:
        actual, predicted = encode(columns["label"], labels), encode(columns["prediction"], labels)
        return count(actual, predicted, index, len(labels))

    counter = Counter(count_rows)
    return [
        Metric("weighted_f1", counter.score(weighted_f1)),
        Metric("macro_f1", counter.score(macro_f1)),
        Metric("accuracy", counter.score(accuracy)),
        Metric("matthews_correlation", counter.score(matthews_correlation)),
        Metric("expected_calibration_error", _calibration_score(labels), higher_is_better=False, inflated=True),
        Metric("log_loss", _log_loss_score(labels), higher_is_better=False),
        *counter.of_labels(labels),
    ]


def softmax(logits: NDArray[Any]) -> Floats:
    """Return probabilities over the last axis, in double precision."""
    shifted = np.asarray(logits, float)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def validation_metrics(logits: NDArray[Any], actual: Sequence[int], labels: Sequence[str]) -> dict[str, float]:
    """Return `weighted_f1`, `macro_f1`, `accuracy` and `loss` (cross-entropy without smoothing)."""
    targets, rows = np.asarray(actual, np.intp), np.arange(len(actual))
    probabilities = softmax(logits)
    counts = count(targets, probabilities.argmax(axis=1), rows[None], len(labels))
    return {
        "weighted_f1": float(weighted_f1(counts)[0]),
        "macro_f1": float(macro_f1(counts)[0]),
        "accuracy": float(accuracy(counts)[0]),
        "loss": float(-np.log(np.clip(probabilities[rows, targets], np.finfo(float).tiny, 1.0)).mean()),
    }


def best_offsets(logits: NDArray[Any], actual: Sequence[int], most_lost: float) -> list[float]:
    """Return a number to add to each label's logit, which gives the best macro F1 at little loss of weighted F1.

    One label after the other takes the best of a grid, twice. The offset of the most frequent label is 0.

    Args:
        logits: Shape (n, labels).
        actual: Positions of the true labels, n.
        most_lost: Largest loss of weighted F1.
    """
    targets, size = np.asarray(actual, np.intp), logits.shape[1]
    rows = np.arange(len(targets))[None]

    def quality(offsets: Floats) -> tuple[float, float]:
        counts = count(targets, (logits + offsets).argmax(axis=1), rows, size)
        weighted = float(weighted_f1(counts)[0])
        return (float(macro_f1(counts)[0]) if weighted >= least else -1.0), weighted

    offsets, least = np.zeros(size), -1.0
    least = quality(offsets)[1] - most_lost
    rare = np.argsort(np.bincount(targets, minlength=size), kind="stable")[:-1]
    for label in [*rare, *rare]:
        tried = [offsets + np.eye(size)[label] * (value - offsets[label]) for value in (0.0, *_OFFSETS)]
        offsets = max(tried, key=quality)
    return [float(value) for value in offsets]


def category_answers(logits: NDArray[np.float32], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return `label`, its `probability`, and the `probabilities` of all labels, for each row."""
    return [
        {"label": labels[best], "probability": row[best], "probabilities": dict(zip(labels, row, strict=True))}
        for row in softmax(logits).tolist()
        for best in [max(range(len(labels)), key=row.__getitem__)]
    ]


def category_table(
    probabilities: Floats, frame: pd.DataFrame, labels: Sequence[str], columns: Sequence[str]
) -> pd.DataFrame:
    """Return some columns of `frame`, its `label`, and each row's most probable label as `prediction`.

    Args:
        probabilities: Shape (rows, labels); they become the columns `probability_LABEL`.
        frame: The rows.
        labels: Names in the order of the probabilities.
        columns: Columns of `frame` to keep where it has them.
    """
    import pandas as pd

    table: dict[str, Any] = {name: frame[name].to_numpy() for name in columns if name in frame}
    if "label" in frame:
        table["label"] = label_names(frame["label"]).to_numpy()
    table["prediction"] = np.asarray(labels, dtype=object)[probabilities.argmax(axis=1)]
    table["confidence"] = probabilities.max(axis=1)
    return pd.DataFrame(table | {f"probability_{label}": probabilities[:, i] for i, label in enumerate(labels)})


def never_predicted(actual: NDArray[Any], predicted: NDArray[Any]) -> dict[str, int]:
    """Return the labels that occur and are never predicted, with their numbers of rows, the most frequent first."""
    labels, rows = np.unique(np.asarray(actual, dtype=str), return_counts=True)
    missed = ~np.isin(labels, np.asarray(predicted, dtype=str))
    order = np.argsort(-rows[missed], kind="stable")
    return {str(label): int(number) for label, number in zip(labels[missed][order], rows[missed][order], strict=True)}


def encode(values: NDArray[Any], labels: Sequence[str]) -> Integers:
    """Return the positions of `values` in `labels`.

    Raises:
        ValueError: A value is none of the labels.
    """
    positions = {label: position for position, label in enumerate(labels)}
    try:
        return np.fromiter((positions[value] for value in values), np.intp, len(values))
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is none of the labels {list(labels)}") from None


def count(actual: Integers, predicted: Integers, index: Integers, n_labels: int) -> Counts:
    """Count hits, predicted and actual rows of each label.

    Args:
        actual: True labels as positions, shape (n,).
        predicted: Predicted labels as positions, shape (n,).
        index: Rows of each resample, shape (resamples, m).
        n_labels: Number of labels.
    """
    resamples = len(index)
    width = n_labels + 1  # the last cell takes the predictions that are not hits
    start = np.arange(resamples)[:, None]
    hits = np.where(actual == predicted, actual, n_labels)

    def per_label(positions: Integers) -> Floats:
        cells = (positions[index] + start * width).ravel()
        return np.bincount(cells, minlength=resamples * width).reshape(resamples, width)[:, :n_labels].astype(float)

    return Counts(per_label(hits), per_label(predicted), per_label(actual))


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Return the element-wise quotient with 0/0 = 0, as in scikit-learn's `zero_division=0`."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def precision(counts: Counts) -> Floats:
    """Return the share of correct predictions of each label, shape (resamples, labels)."""
    return ratio(counts.hits, counts.predicted)


def recall(counts: Counts) -> Floats:
    """Return the share of correctly predicted rows of each label, shape (resamples, labels)."""
    return ratio(counts.hits, counts.actual)


def f1(counts: Counts) -> Floats:
    """Return the harmonic mean of precision and recall, shape (resamples, labels)."""
    return ratio(2 * counts.hits, counts.predicted + counts.actual)


def weighted_f1(counts: Counts) -> Floats:
    """Return the mean F1 of the labels, weighted by their rows, shape (resamples,)."""
    return ratio((f1(counts) * counts.actual).sum(axis=1), counts.actual.sum(axis=1))


def macro_f1(counts: Counts) -> Floats:
    """Return the mean F1 of the labels that occur in a resample, shape (resamples,)."""
    occurs = counts.predicted + counts.actual > 0
    return ratio(f1(counts).sum(axis=1), occurs.sum(axis=1).astype(float))


def accuracy(counts: Counts) -> Floats:
    """Return the share of correct predictions, shape (resamples,)."""
    return ratio(counts.hits.sum(axis=1), counts.actual.sum(axis=1))


def matthews_correlation(counts: Counts) -> Floats:
    """Return the correlation of predicted and actual label (Gorodkin 2004), shape (resamples,)."""
    rows, hits = counts.actual.sum(axis=1), counts.hits.sum(axis=1)
    both = (counts.predicted * counts.actual).sum(axis=1)
    spread = (rows**2 - (counts.predicted**2).sum(axis=1)) * (rows**2 - (counts.actual**2).sum(axis=1))
    return ratio(hits * rows - both, np.sqrt(spread))


def probabilities_of(columns: Columns, labels: Sequence[str]) -> Floats:
    """Return the columns `probability_LABEL` as a matrix, shape (n, labels)."""
    return np.stack([np.asarray(columns[f"probability_{label}"], dtype=float) for label in labels], axis=1)


def calibration_bins(confidence: Floats, hits: NDArray[np.bool_], index: Integers) -> Bins:
    """Return mean confidence and accuracy in `CALIBRATION_BINS` bins of equal width (Guo et al. 2017).

    An edge belongs to the bin above it.

    Args:
        confidence: Probability of the predicted label, shape (n,).
        hits: Whether the prediction is correct, shape (n,).
        index: Rows of each resample, shape (resamples, m).
    """
    resamples, n_bins = len(index), CALIBRATION_BINS
    edges = np.linspace(0, 1, n_bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, n_bins - 1)
    cells = (bin_of[index] + np.arange(resamples)[:, None] * n_bins).ravel()

    def total(weights: NDArray[Any] | None) -> Floats:
        drawn = None if weights is None else weights[index].ravel()
        return np.bincount(cells, drawn, resamples * n_bins).reshape(resamples, n_bins).astype(float)

    rows = total(None)
    return Bins(rows, ratio(total(confidence), rows), ratio(total(hits.astype(float)), rows))


def expected_calibration_error(bins: Bins) -> Floats:
    """Return the mean distance of confidence from accuracy, weighted by rows (Guo et al. 2017), shape (resamples,)."""
    return ratio((bins.rows * np.abs(bins.accuracy - bins.confidence)).sum(axis=1), bins.rows.sum(axis=1))


def _calibration_score(labels: Sequence[str]) -> Score:
    def score(columns: Columns, index: Integers) -> Floats:
        confidence = probabilities_of(columns, labels).max(axis=1)
        hits = encode(columns["label"], labels) == encode(columns["prediction"], labels)
        return expected_calibration_error(calibration_bins(confidence, hits, index))

    return score


def _log_loss_score(labels: Sequence[str]) -> Score:
    def score(columns: Columns, index: Integers) -> Floats:
        actual = encode(columns["label"], labels)
        of_label = probabilities_of(columns, labels)[np.arange(len(actual)), actual]
        losses = -np.log(np.clip(of_label, np.finfo(float).eps, 1.0))
        return losses[index].mean(axis=1)  # type: ignore[no-any-return]

    return score
