"""Report sections for predicted categories: confusions and calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from textmill.metrics.base import Section
from textmill.metrics.categories import (
    calibration_bins,
    encode,
    expected_calibration_error,
    never_predicted,
    probabilities_of,
)
from textmill.metrics.plots import confusion_matrix_plot, reliability_plot

_MOST_CONFUSIONS = 10


def category_sections(predictions: pd.DataFrame, labels: Sequence[str]) -> list[Section]:
    """Return the sections for the columns `label`, `prediction` and `probability_LABEL`."""
    columns = {str(name): predictions[name].to_numpy() for name in predictions}
    actual, predicted = encode(columns["label"], labels), encode(columns["prediction"], labels)
    return [
        _confusions(predictions, actual, predicted, labels),
        _calibration(probabilities_of(columns, labels).max(axis=1), actual == predicted),
    ]


def category_warnings(predictions: pd.DataFrame) -> list[str]:
    """Return a line for each label that is never predicted."""
    missed = never_predicted(predictions["label"].to_numpy(), predictions["prediction"].to_numpy())
    return [
        f"The label {label} is never predicted: the model finds none of its {rows} test rows "
        f"({rows / len(predictions):.1%} of all). Try task.balance or task.offsets, or get more rows of it."
        for label, rows in missed.items()
    ]


def _confusions(
    predictions: pd.DataFrame, actual: NDArray[np.intp], predicted: NDArray[np.intp], labels: Sequence[str]
) -> Section:
    size = len(labels)
    matrix = np.bincount(actual * size + predicted, minlength=size * size).reshape(size, size)
    plot = confusion_matrix_plot(matrix, labels)
    pairs = [(int(matrix[i, j]), i, j) for i, j in zip(*np.nonzero(matrix), strict=True) if i != j]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    table = pd.DataFrame(
        {
            "true": [labels[i] for _, i, _ in pairs],
            "predicted": [labels[j] for _, _, j in pairs],
            "rows": [count for count, _, _ in pairs],
            "share of the true label": [f"{count / matrix[i].sum():.1%}" for count, i, _ in pairs],
        }
    )
    return Section(
        "Confusions",
        "Pairs of true and predicted labels, the most frequent error first.",
        table.head(_MOST_CONFUSIONS),
        {"confusion": plot} if plot else {},
        {"confusion": pd.DataFrame({"actual": predictions["label"], "predicted": predictions["prediction"]})},
    )


def _calibration(confidence: NDArray[np.float64], hits: NDArray[np.bool_]) -> Section:
    bins = calibration_bins(confidence, hits, np.arange(len(hits))[None])
    error = expected_calibration_error(bins)[0]
    edges = np.linspace(0, 1, bins.rows.shape[1] + 1)
    filled = bins.rows[0] > 0
    table = pd.DataFrame(
        {
            "confidence": bins.confidence[0].round(6),
            "accuracy": bins.accuracy[0].round(6),
            "rows": bins.rows[0].astype(int),
            "low": edges[:-1].round(6),
            "high": edges[1:].round(6),
        }
    )[filled]
    gap = confidence.mean() - hits.mean()
    bias = "well calibrated" if abs(gap) < 0.01 else "over-confident" if gap > 0 else "under-confident"
    return Section(
        "Calibration",
        f"Accuracy of the predictions by their confidence. The expected calibration error is {error:.3f}; "
        f"on average the model is {bias} (confidence {confidence.mean():.3f}, accuracy {hits.mean():.3f}).",
        None,
        {"reliability": reliability_plot(bins)},
        {"reliability": table},
    )
