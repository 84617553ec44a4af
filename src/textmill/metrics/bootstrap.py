"""Bootstrap intervals (Efron & Tibshirani 1993) of a metric, and of the difference of two models.

Rows are drawn with replacement; every metric of one call is computed on the same draws. A value that is not
finite, or rows that do not match, raise an error and never give an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from textmill.errors import UserError
from textmill.metrics.base import Columns, Metric
from textmill.metrics.swaps import Pair

if TYPE_CHECKING:
    import pandas as pd

_CELLS_AT_ONCE = 4_000_000
"""Drawn rows held in memory at a time."""


@dataclass(frozen=True)
class Bootstrap:
    """Options of intervals: number of resamples, confidence (0.95, say) and seed."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its percentile interval; the bounds of an `inflated` metric are corrected for bias."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return the three numbers by name, rounded to six digits."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}

    def as_gain(self, *, higher_is_better: bool) -> Interval:
        """Return a difference of two models so that it is positive where the first one is better."""
        return self if higher_is_better else Interval(0.0 - self.value, 0.0 - self.high, 0.0 - self.low)


def intervals(predictions: pd.DataFrame, metrics: Sequence[Metric], bootstrap: Bootstrap) -> dict[str, Interval]:
    """Return each metric of `predictions` with its interval.

    Raises:
        UserError: There are fewer than two rows, or a value or a metric is not finite.
    """
    columns = _checked_columns(predictions)
    result = _resampled(metrics, lambda index: _scores(metrics, columns, index), len(predictions), bootstrap)[0]
    inflated = {metric.name: result[metric.name] for metric in metrics if metric.inflated}
    return result | {name: replace(interval, low=max(0.0, interval.low)) for name, interval in inflated.items()}


def paired_differences(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    metrics: Sequence[Metric],
    bootstrap: Bootstrap,
    same_columns: Sequence[str] = (),
) -> dict[str, Interval]:
    """Return each metric of `ours` minus that of `theirs`, both on the same draws of the same rows.

    Pairing removes the difficulty of a row for both models, so that the interval is narrower than that of
    independent draws. Rows are matched by the column `id`, in any order. The columns `same_columns`, the
    targets say, must be equal in both.

    Raises:
        UserError: The ids are not unique or differ, a column of `same_columns` differs, there are fewer
            than two rows, or a value or metric is not finite.
    """
    mine = _checked_columns(ours)
    others = _checked_columns(_aligned(ours, theirs, same_columns))

    def difference(index: NDArray[np.intp]) -> NDArray[np.float64]:
        return _scores(metrics, mine, index) - _scores(metrics, others, index)

    return _resampled(metrics, difference, len(ours), bootstrap)[0]


@dataclass(frozen=True)
class PairedTest:
    """A comparison of two models in one metric.

    Attributes:
        gain: Improvement of the first model over the second; negative where it is worse, in either direction.
    """

    gain: Interval


def paired_test(ours: pd.DataFrame, theirs: pd.DataFrame, metric: Metric, bootstrap: Bootstrap) -> PairedTest:
    """Return the gain of `ours` over `theirs`, with its percentile interval. Errors: see `paired_differences`."""
    pair = checked_pair(ours, theirs)
    return PairedTest(_resampled([metric], _gain(pair, metric), pair.rows, bootstrap)[0][metric.name])


def _gain(pair: Pair, metric: Metric) -> Callable[[NDArray[np.intp]], NDArray[np.float64]]:
    """Return the gain of the first model of a pair as a function of drawn rows, shape (1, resamples)."""
    sign = 1 if metric.higher_is_better else -1
    return lambda index: sign * (metric.score(pair.first, index) - metric.score(pair.second, index))[None]


def paired_gain(pair: Pair, metric: Metric, bound: float, bootstrap: Bootstrap, alpha: float) -> Interval:
    """Return the improvement of the first model of a pair over the second; negative for a loss.

    The bounds are those of Student's t, with the probability `alpha` beyond each. Unlike percentiles they
    need no more draws for a smaller `alpha`. The standard error of a mean comes from its rows, that of
    any other metric from the bootstrap's draws. A model whose gain is `bound`, the value to exclude, differs
    in enough rows to gain or lose that much. A lucky draw has fewer of them and looks too certain. As in a
    score test (Tango 1998), half of the rows that it lacks therefore count as if they had differed.

    Raises:
        UserError: There are fewer than two rows, or the metric is not finite.
    """
    from scipy.special import stdtrit

    sign = 1 if metric.higher_is_better else -1
    effects = pair.linear_effects(metric, bootstrap.seed) if pair.rows > 1 else None
    if effects is not None:
        value, error = sign * float(effects.mean()), float(effects.std()) / math.sqrt(pair.rows)
    else:
        result, draws = _resampled([metric], _gain(pair, metric), pair.rows, bootstrap)
        value, error = result[metric.name].value, float(draws.std(ddof=1))
        value -= float(draws.mean()) - value if metric.inflated else 0.0
    if not pair.identical:
        row = pair.typical_change(metric) / pair.rows
        error = math.sqrt(max(error**2 + row * max(0.0, value - bound) / 2, row * abs(bound)))
    reach = error * float(stdtrit(pair.rows - 1, 1 - alpha))
    return Interval(value, value - reach, value + reach)


def checked_pair(ours: pd.DataFrame, theirs: pd.DataFrame, same_columns: Sequence[str] = ()) -> Pair:
    """Return the columns of two tables with their rows in one order. Errors: see `paired_differences`."""
    return Pair(_checked_columns(ours), _checked_columns(_aligned(ours, theirs, same_columns)))


def _scores(metrics: Sequence[Metric], columns: Columns, index: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return every metric of every draw, shape (metrics, resamples)."""
    return np.stack([metric.score(columns, index) for metric in metrics])


def _resampled(
    metrics: Sequence[Metric],
    score: Callable[[NDArray[np.intp]], NDArray[np.float64]],
    rows: int,
    bootstrap: Bootstrap,
) -> tuple[dict[str, Interval], NDArray[np.float64]]:
    """Return the intervals by metric, and every draw, shape (metrics, resamples)."""
    if rows < 2:
        raise UserError(f"{rows} row(s) to measure on", fix="An interval needs at least two rows; use a larger split")
    from scipy import stats

    all_rows = np.arange(rows)
    values = score(all_rows[None])[:, 0]
    _refuse_nan(values, metrics)
    result = stats.bootstrap(
        (all_rows,),
        lambda index, axis: score(index),  # noqa: ARG005 - the rows of a draw are always on the last axis
        n_resamples=bootstrap.resamples,
        batch=max(1, _CELLS_AT_ONCE // rows),
        vectorized=True,
        axis=-1,
        confidence_level=bootstrap.confidence,
        method="percentile",
        rng=np.random.default_rng(bootstrap.seed),
    )
    _refuse_nan(result.bootstrap_distribution.sum(axis=-1), metrics)
    low, high = result.confidence_interval
    # The bias that resampling adds, estimated from the draws (Efron & Tibshirani 1993, ch. 10).
    bias = result.bootstrap_distribution.mean(axis=-1) - values
    shift = np.where([metric.inflated for metric in metrics], bias, 0.0)
    bounds = zip(metrics, values.tolist(), (low - shift).tolist(), (high - shift).tolist(), strict=True)
    return {metric.name: Interval(*numbers) for metric, *numbers in bounds}, result.bootstrap_distribution


def _refuse_nan(values: NDArray[np.float64], metrics: Sequence[Metric]) -> None:
    for value, metric in zip(values, metrics, strict=True):
        if not np.isfinite(value):
            raise UserError(f"{metric.name} is {value}, not a finite number", fix="Check the predictions")


def _checked_columns(predictions: pd.DataFrame) -> Columns:
    for name in predictions.select_dtypes("number"):
        wrong = ~np.isfinite(predictions[name].to_numpy(float))
        if wrong.any():
            raise UserError(
                f"{int(wrong.sum())} of {len(predictions)} predictions have a {name} that is not a finite number",
                fix="The model has probably diverged; train with a lower learning rate",
            )
    return {str(name): predictions[name].to_numpy() for name in predictions}


def _aligned(ours: pd.DataFrame, theirs: pd.DataFrame, same_columns: Sequence[str]) -> pd.DataFrame:
    """Return `theirs` in the order of `ours`."""
    fix = "Predict the same split with both models"
    for name, table in (("first", ours), ("second", theirs)):
        if not table["id"].is_unique:
            raise UserError(f"the {name} predictions repeat an id", fix="Predict the split again")
    aligned = theirs.set_index("id", drop=False)
    common = int(ours["id"].isin(aligned.index).sum())
    if len(ours) != len(theirs) or common != len(ours):
        counts = f"{len(ours)} and {len(theirs)}, {common} in common"
        raise UserError(f"the two models predicted different rows ({counts})", fix=fix)
    aligned = aligned.loc[ours["id"]].reset_index(drop=True)
    for column in same_columns:
        both_empty = aligned[column].isna().to_numpy() & ours[column].isna().to_numpy()  # empty cells equal each other
        differs = (aligned[column].to_numpy() != ours[column].to_numpy()) & ~both_empty
        if differs.any():
            where = f"{int(differs.sum())} of {len(ours)}, first at id {ours['id'].to_numpy()[differs.argmax()]!r}"
            raise UserError(f"the two models' rows differ in {column} ({where})", fix=fix)
    return aligned
