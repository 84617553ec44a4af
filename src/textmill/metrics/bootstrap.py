"""Intervals by the bootstrap (Efron & Tibshirani 1993): of a figure, and of a difference of two models.

Rows are drawn with replacement; every figure of one call is computed on the same draws. Everything
here fails closed: a value that is no finite number, or rows that do not match, end in an error and
never in an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.errors import UserError
from textmill.metrics.base import Metric

if TYPE_CHECKING:
    import pandas as pd

_CELLS_AT_ONCE = 4_000_000
"""Drawn rows held in memory at a time."""

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of resamples, confidence (0.95, say) and seed."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its percentile interval, moved back where the metric is `inflated`."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name, rounded to six digits."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def intervals(predictions: pd.DataFrame, metrics: Sequence[Metric], bootstrap: Bootstrap) -> dict[str, Interval]:
    """Each metric over `predictions` with its interval.

    Raises:
        UserError: There are fewer than two rows, or a value or a figure is no finite number.
    """
    columns = _checked_columns(predictions)
    found = _intervals(metrics, lambda index: _scores(metrics, columns, index), len(predictions), bootstrap)
    below = {
        metric.name: replace(found[metric.name], low=max(0.0, found[metric.name].low))
        for metric in metrics
        if metric.inflated
    }
    return found | below


def paired_differences(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    metrics: Sequence[Metric],
    bootstrap: Bootstrap,
    same_columns: Sequence[str] = (),
) -> dict[str, Interval]:
    """Each metric of `ours` minus that of `theirs`, both on the same draws of the same rows.

    Pairing takes out what makes a row hard for both models, so the interval is narrower than
    that of two intervals side by side. Rows are matched by the column `id`, in any order.

    Args:
        ours: Predictions of one model.
        theirs: Predictions of the other on the same rows.
        metrics: What to compare.
        bootstrap: Resamples, confidence, seed.
        same_columns: Columns (the targets, say) that must hold the same in both.

    Raises:
        UserError: The ids are not unique or not the same in both, a column of `same_columns`
            differs, there are fewer than two rows, or a value or figure is no finite number.
    """
    mine = _checked_columns(ours)
    others = _checked_columns(_aligned(ours, theirs, same_columns))

    def difference(index: NDArray[np.intp]) -> NDArray[np.float64]:
        return _scores(metrics, mine, index) - _scores(metrics, others, index)

    return _intervals(metrics, difference, len(ours), bootstrap)


@dataclass(frozen=True)
class PairedTest:
    """What the draws say about one model against another in one metric.

    Attributes:
        gain: By how much the first is better, negative where it is worse, whichever way is better.
        harm: p-value against "it is not worse by more than the margin": small means harm.
    """

    gain: Interval
    harm: float


def paired_test(
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    metric: Metric,
    margin: float,
    bootstrap: Bootstrap,
    same_columns: Sequence[str] = (),
) -> PairedTest:
    """The gain of `ours` over `theirs`, and the one-sided test of a loss beyond `margin`.

    The p-value is the share of draws, the observed one counted among them, in which the loss stays
    within the margin: the percentile interval turned around (Efron & Tibshirani 1993, ch. 15).
    Arguments and errors are those of `paired_differences`.
    """
    mine = _checked_columns(ours)
    others = _checked_columns(_aligned(ours, theirs, same_columns))
    sign = 1 if metric.higher_is_better else -1

    def gain(index: NDArray[np.intp]) -> NDArray[np.float64]:
        return sign * (metric.score(mine, index) - metric.score(others, index))[None]

    found, draws = _resampled([metric], gain, len(ours), bootstrap)
    harmless = int((draws[0] >= -margin).sum())
    return PairedTest(found[metric.name], (1 + harmless) / (1 + draws.shape[1]))


def _scores(metrics: Sequence[Metric], columns: Columns, index: NDArray[np.intp]) -> NDArray[np.float64]:
    """Every metric on every draw, shape (metrics, resamples)."""
    return np.stack([metric.score(columns, index) for metric in metrics])


def _intervals(
    metrics: Sequence[Metric],
    score: Callable[[NDArray[np.intp]], NDArray[np.float64]],
    rows: int,
    bootstrap: Bootstrap,
) -> dict[str, Interval]:
    return _resampled(metrics, score, rows, bootstrap)[0]


def _resampled(
    metrics: Sequence[Metric],
    score: Callable[[NDArray[np.intp]], NDArray[np.float64]],
    rows: int,
    bootstrap: Bootstrap,
) -> tuple[dict[str, Interval], NDArray[np.float64]]:
    """The intervals by metric, and every draw, shape (metrics, resamples)."""
    if rows < 2:
        raise UserError(f"{rows} row(s) to measure on", fix="An interval needs two rows at least; give a larger split")
    from scipy import stats

    everything = np.arange(rows)
    values = score(everything[None])[:, 0]
    _refuse_nan(values, metrics)
    result = stats.bootstrap(
        (everything,),
        lambda index, axis: score(index),  # noqa: ARG005 - the rows of a draw always lie on the last axis
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
    # By the bias that resampling adds, as far as the draws tell (Efron & Tibshirani 1993, ch. 10).
    bias = result.bootstrap_distribution.mean(axis=-1) - values
    shift = np.where([metric.inflated for metric in metrics], bias, 0.0)
    low, high = low - shift, high - shift
    found = {metric.name: Interval(float(values[i]), float(low[i]), float(high[i])) for i, metric in enumerate(metrics)}
    return found, result.bootstrap_distribution


def _refuse_nan(values: NDArray[np.float64], metrics: Sequence[Metric]) -> None:
    for value, metric in zip(values, metrics, strict=True):
        if not np.isfinite(value):
            raise UserError(f"{metric.name} is {value}, not a finite number", fix="Look at the predictions")


def _checked_columns(predictions: pd.DataFrame) -> Columns:
    for name in predictions.select_dtypes("number"):
        wrong = ~np.isfinite(predictions[name].to_numpy(float))
        if wrong.any():
            raise UserError(
                f"{int(wrong.sum())} of {len(predictions)} predictions have a {name} that is no finite number",
                fix="The model has probably diverged; train with a lower learning rate",
            )
    return {str(name): predictions[name].to_numpy() for name in predictions}


def _aligned(ours: pd.DataFrame, theirs: pd.DataFrame, same_columns: Sequence[str]) -> pd.DataFrame:
    """`theirs` in the order of `ours`."""
    for name, table in (("first", ours), ("second", theirs)):
        if not table["id"].is_unique:
            raise UserError(f"an id stands twice in the {name} predictions", fix="Predict the split again")
    found = theirs.set_index("id", drop=False)
    if len(ours) != len(theirs) or not ours["id"].isin(found.index).all():
        raise UserError(
            f"the two models predicted different rows ({len(ours)} and {len(theirs)}, "
            f"{int(ours['id'].isin(found.index).sum())} in common)",
            fix="Predict the same split with both",
        )
    found = found.loc[ours["id"]].reset_index(drop=True)
    for column in same_columns:
        differs = found[column].to_numpy() != ours[column].to_numpy()
        if differs.any():
            raise UserError(
                f"the two models' rows differ in {column} ({int(differs.sum())} of {len(ours)}, "
                f"first at id {ours['id'].to_numpy()[differs.argmax()]!r})",
                fix="Predict the same split with both",
            )
    return found
