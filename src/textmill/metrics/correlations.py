"""Correlations of a predicted and an actual number, each over many resamples at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textmill.metrics.base import Columns, Metric

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]


def correlation_metrics(predicted: str, actual: str) -> list[Metric]:
    """Return Spearman's and Pearson's correlation of two columns; 0 in a draw with a constant column."""

    def values(columns: Columns) -> tuple[Floats, Floats]:
        return np.asarray(columns[predicted], float), np.asarray(columns[actual], float)

    return [
        Metric("spearman", lambda columns, index: spearman(*values(columns), index)),
        Metric("pearson", lambda columns, index: pearson(*values(columns), index)),
    ]


def spearman(first: Floats, second: Floats, index: Integers) -> Floats:
    """Return Pearson's correlation of the ranks within each resample, shape (resamples,).

    Args:
        first: Values, shape (n,).
        second: Values, shape (n,).
        index: Rows of each resample, shape (resamples, m).
    """
    return _correlation(_ranks(first, index), _ranks(second, index))


def pearson(first: Floats, second: Floats, index: Integers) -> Floats:
    """Return Pearson's correlation within each resample, shape (resamples,); arguments: see `spearman`."""
    return _correlation(first[index], second[index])


def _ranks(values: Floats, index: Integers) -> Floats:
    """Return ranks within each resample, shape (resamples, m); equal values share their mean rank.

    All resamples repeat the same rows, so that counting replaces sorting.
    """
    _, place = np.unique(values, return_inverse=True)
    resamples, distinct = len(index), int(place.max()) + 1
    drawn = place[index]
    cells = (drawn + np.arange(resamples)[:, None] * distinct).ravel()
    counts = np.bincount(cells, minlength=resamples * distinct).reshape(resamples, distinct)
    mean_rank = counts.cumsum(axis=1) - (counts - 1) / 2
    ranks: Floats = np.take_along_axis(mean_rank, drawn, axis=1)
    return ranks


def _correlation(first: Floats, second: Floats) -> Floats:
    one, other = _standardised(first), _standardised(second)
    correlation: Floats = np.clip((one * other).sum(axis=1), -1, 1)
    return correlation


def _standardised(values: Floats) -> Floats:
    """Return each row minus its mean, at length 1; zeros for a constant row, whose mean may round to another value."""
    centred: Floats = values - values.mean(axis=1, keepdims=True)
    centred[np.ptp(values, axis=1) == 0] = 0
    for size in (np.abs(centred).max(axis=1, keepdims=True), None):  # the largest first: squares of tiny values are 0
        length = np.sqrt((centred**2).sum(axis=1, keepdims=True)) if size is None else size
        centred = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return centred
