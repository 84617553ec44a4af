"""Metrics of predicted numbers and their intervals, and the calibration of intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.metrics.base import Columns, Metric, Section, mean_of
from textmill.metrics.categories import Floats, Integers, ratio
from textmill.metrics.correlations import spearman

if TYPE_CHECKING:
    import pandas as pd

_PARTS = 5


def conformal_quantile(scores: Floats, coverage: float) -> float:
    """Return the score that `coverage` of new rows do not exceed (split conformal; Vovk et al. 2005; Lei et al. 2018).

    With n rows exchangeable with the new ones, the score of rank ceil((n + 1) * coverage) guarantees it; where n is too
    small for that rank, the largest score is returned.

    Args:
        scores: Absolute errors divided by the predicted scales, shape (n,).
        coverage: Share between 0 and 1.
    """
    rank = min(len(scores), math.ceil((len(scores) + 1) * coverage))
    return float(np.sort(scores)[rank - 1])


def number_metrics(*, ordered: bool) -> list[Metric]:
    """Return Spearman's correlation, errors and intervals of a `number_table`; agreement too for ordered classes."""

    def correlation(columns: Columns, index: Integers) -> Floats:
        return spearman(columns["expected"], columns["actual"], index)

    def root_mean_squared_error(columns: Columns, index: Integers) -> Floats:
        return np.asarray(np.sqrt(columns["squared_error"][index].mean(axis=1)))

    agreement = [
        Metric("accuracy", lambda columns, index: (columns["prediction"] == columns["actual"])[index].mean(axis=1)),
        Metric("quadratic_kappa", quadratic_kappa),
    ]
    return [
        Metric("spearman", correlation),
        Metric("mean_absolute_error", mean_of("absolute_error"), higher_is_better=False),
        Metric("root_mean_squared_error", root_mean_squared_error, higher_is_better=False),
        Metric("interval_coverage", mean_of("covered")),
        Metric("interval_width", mean_of("width"), higher_is_better=False),
        *(agreement if ordered else []),
    ]


def quadratic_kappa(columns: Columns, index: Integers) -> Floats:
    """Return Cohen's kappa with quadratic weights (Cohen 1968) of the columns `prediction` and `actual`."""
    one, other = (np.asarray(columns[name], float)[index] for name in ("prediction", "actual"))
    chance = one.var(axis=1) + other.var(axis=1) + (one.mean(axis=1) - other.mean(axis=1)) ** 2
    return np.where(chance > 0, 1 - ratio(((one - other) ** 2).mean(axis=1), chance), 0.0)


def number_table(
    frame: pd.DataFrame, actual: Floats, expected: Floats, radius: Floats, prediction: Floats | None = None
) -> pd.DataFrame:
    """Return `frame` with actual and predicted numbers, intervals and errors.

    Args:
        frame: Columns to keep.
        actual: True numbers, shape (n,).
        expected: Centres of the intervals, shape (n,).
        radius: Halves of the intervals, shape (n,).
        prediction: Answers, shape (n,); None for `expected`.
    """
    import pandas as pd

    answer = expected if prediction is None else prediction
    error = np.abs(answer - actual)
    table: dict[str, Any] = {str(name): frame[name].to_numpy() for name in frame}
    return pd.DataFrame(
        table
        | {
            "actual": actual,
            "prediction": answer,
            "expected": expected,
            "low": expected - radius,
            "high": expected + radius,
            "absolute_error": error,
            "squared_error": error**2,
            "covered": (np.abs(expected - actual) <= radius).astype(float),
            "width": 2 * radius,
        }
    )


def number_sections(predictions: pd.DataFrame, coverage: float) -> list[Section]:
    """Return a plot of predicted by true number, and the coverage of the intervals by their predicted number."""
    import pandas as pd

    from textmill.metrics.plots import scatter

    plot = scatter(predictions["actual"].to_numpy(), predictions["expected"].to_numpy(), "true", "predicted")
    parts = np.array_split(np.argsort(predictions["expected"].to_numpy(), kind="stable"), _PARTS)
    rows = [
        {
            "predicted": f"{part['expected'].min():.3g} to {part['expected'].max():.3g}",
            "rows": len(part),
            "covered": f"{part['covered'].mean():.1%}",
            "mean width": round(float(part["width"].mean()), 4),
            "mean absolute error": round(float(part["absolute_error"].mean()), 4),
        }
        for part in (predictions.iloc[positions] for positions in parts if len(positions))
    ]
    text = (
        f"Validation calibrated the intervals to contain {coverage:.0%} of the true numbers; here they contain "
        f"{predictions['covered'].mean():.1%}."
    )
    return [
        Section("True and predicted", "Each point is a row of the test split.", figures={"numbers": plot}),
        Section("Intervals", text, pd.DataFrame(rows)),
    ]


def number_errors(predictions: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows by falling absolute error."""
    shown = predictions[[*columns, "actual", "prediction", "low", "high", "absolute_error"]]
    return shown.sort_values(["absolute_error", "id"], ascending=[False, True], kind="stable", ignore_index=True)


def standardised(values: NDArray[Any], mean: float, spread: float) -> Floats:
    """Return numbers minus `mean`, divided by `spread`."""
    return (np.asarray(values, float) - mean) / spread
