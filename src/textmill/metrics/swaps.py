"""Joint test of many parts of a table for a loss: the two models' answers, swapped at random.

If two models are equally good, it does not matter which of them gave a row's answer (Fisher 1935). Swapping
the answers of random rows therefore gives the distribution of every part's gain at once, for any metric.
The largest scaled loss of each draw tests all parts jointly (Westfall & Young 1993; step-down: Romano &
Wolf 2005). More parts raise its limit slowly, and the number of draws does not limit how many can be tested.
Scaled by the rows that differ, a draw has tails no heavier than a normal variable's, however few those rows
are (Hoeffding 1963), so that a small part cannot hide the others.

Rows of a metric such as the log loss gain or lose much in few rows and little in many. A part that happens to
have none of the few looks certain of a loss. There its rows count as varying at least as those of all parts do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textmill.errors import UserError
from textmill.metrics.base import Columns, Metric

_CELLS_AT_ONCE = 4_000_000
"""Drawn rows held in memory at a time."""
_ROWS_AT_ONCE = 4096

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class PartTest:
    """The test of one part for a loss beyond the margin.

    Attributes:
        gain: Improvement of the first model; negative for a loss.
        p: Probability of such a loss in any part if no part loses more than the margin.
        low: Lower bound of the gain, valid for all parts together.
        high: Upper bound of the gain, valid for all parts together.
        smallest: Smallest loss that this many rows could have shown.
    """

    gain: float
    p: float
    low: float
    high: float
    smallest: float


@dataclass(frozen=True)
class Pair:
    """Predictions of two models for the same rows, in the same order."""

    first: Columns
    second: Columns

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.first.values())))

    @property
    def identical(self) -> bool:
        """Whether both models predict the same in every row and column, scores and probabilities included."""
        return self.first.keys() == self.second.keys() and all(
            np.array_equal(values, self.second[name]) for name, values in self.first.items()
        )

    def stacked(self, rows: Rows) -> Columns:
        """Return these rows of the first model, followed by those of the second."""
        common = [name for name in self.first if name in self.second]
        return {name: np.concatenate([self.first[name][rows], self.second[name][rows]]) for name in common}

    def row_scores(self, metric: Metric) -> tuple[Floats, Floats]:
        """Return the metric of each row alone for both models; zeros where a single row has none."""
        both = []
        for columns in (self.first, self.second):
            every = np.arange(self.rows)[:, None]
            batches = np.split(every, range(_ROWS_AT_ONCE, len(every), _ROWS_AT_ONCE))
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = np.concatenate([metric.score(columns, batch) for batch in batches])
            both.append(np.nan_to_num(values, posinf=0.0, neginf=0.0))
        return both[0], both[1]

    def typical_change(self, metric: Metric) -> float:
        """Return the typical size by which a row that differs changes the metric of that row: 1 for right or wrong."""
        first, second = self.row_scores(metric)
        size = np.abs(first - second)
        if size.any():
            return float((size**2).sum() / size.sum())
        return float(np.ptp(first))

    def changes_vary(self, metric: Metric) -> bool:
        """Return whether rows change by different sizes, as a loss does; right or wrong is one size."""
        size = np.abs(np.subtract(*self.row_scores(metric)))
        return bool(size.any()) and not np.allclose(size[size > 0], size.max())

    def linear_effects(self, metric: Metric, seed: int) -> Floats | None:
        """Return each row's gain if the metric is the mean of its rows, or None; a mean needs no draws of rows."""
        first, second = self.row_scores(metric)
        rows = np.arange(self.rows)
        swaps = next(_swaps(self.rows, 3, seed))
        means = np.where(swaps, second, first).mean(axis=1)
        scores = metric.score(self.stacked(rows), rows + self.rows * swaps.astype(np.intp))
        return first - second if np.allclose(scores, means, rtol=1e-9, atol=1e-12) else None


def joint_tests(
    pairs: Sequence[Pair],
    parts: Sequence[Rows],
    metric: Metric,
    margin: float,
    significance: float,
    resamples: int,
    seed: int,
) -> list[list[PartTest]]:
    """Test all parts of all pairs together for a loss of more than `margin`.

    Args:
        pairs: Pairs over the same rows: the challenger with the champion, and with the anchor, say.
        parts: Row numbers of each part; parts may overlap.
        metric: Any metric of rows; it need not be a mean.
        margin: Tolerated loss, in the metric's unit.
        significance: Probability of any false finding over all parts and pairs.
        resamples: Number of draws.
        seed: Seed of the draws, which all pairs share.

    Returns:
        A list of tests for each pair, in the order of the parts.

    Raises:
        UserError: The metric of a part is not a finite number.
    """
    if not parts:
        return [[] for _ in pairs]
    sizes = np.array([len(part) for part in parts], float)
    sign = 1 if metric.higher_is_better else -1
    drawn = [sign * _gains(pair, parts, metric, resamples, seed) for pair in pairs]
    _refuse_nan(drawn, metric)
    # Variance by row, and the change that one row makes. A model that loses the margin differs in some
    # rows: without the floor, a few rows that happen to agree would look certain.
    unit = np.concatenate([pair.typical_change(metric) / sizes for pair in pairs])
    gains = np.concatenate(drawn, axis=1)
    wider = [
        _wider(one[1:], sizes) if pair.changes_vary(metric) else np.ones(len(parts))
        for one, pair in zip(drawn, pairs, strict=True)
    ]
    tests = _jointly(gains[0], gains[1:], unit, np.concatenate(wider), margin, significance)
    return [tests[start : start + len(parts)] for start in range(0, len(tests), len(parts))]


def _wider(null: Floats, sizes: Floats) -> Floats:
    """Return by what to widen each part's scale, >= 1, so that a row varies at least as in all parts on average."""
    by_row = (null**2).mean(axis=0) * sizes
    average = np.average(by_row, weights=sizes)
    wider: Floats = np.sqrt(np.maximum(1.0, average / np.where(by_row > 0, by_row, average)))
    return wider


def _jointly(
    gain: Floats, null: Floats, unit: Floats, wider: Floats, margin: float, significance: float
) -> list[PartTest]:
    """Return the tests of gains, shape (tests,), whose swapped draws have shape (resamples, tests)."""
    scale = np.sqrt(np.maximum((null**2).mean(axis=0), margin * unit))
    null = null / np.where(scale > 0, scale, 1.0)
    scale = scale * wider
    score = (-gain - margin) / np.where(scale > 0, scale, 1.0) - 1e-9  # draws equal but for rounding count as equal
    order = np.argsort(-score, kind="stable")
    # Step-down: column j has each draw's largest loss among the parts from the j-th largest score on.
    largest = np.maximum.accumulate(null[:, order[::-1]], axis=1)[:, ::-1]
    adjusted = np.empty(len(gain))
    adjusted[order] = np.maximum.accumulate((1 + (largest >= score[order]).sum(axis=0)) / (1 + len(null)))
    limit = max(0.0, float(np.quantile(largest[:, 0], 1 - significance, method="higher")))
    # A larger loss needs more rows that differ, and these widen the scale: the smallest loss solves
    # loss = margin + limit * sqrt(loss * unit).
    step = limit * np.sqrt(unit)
    smallest = np.maximum(margin + limit * scale, ((step + np.sqrt(step**2 + 4 * margin)) / 2) ** 2)
    columns = (gain, adjusted, gain - limit * scale, gain + limit * scale, smallest)
    return [PartTest(*values) for values in np.stack(columns, axis=1).tolist()]


def _gains(pair: Pair, parts: Sequence[Rows], metric: Metric, resamples: int, seed: int) -> Floats:
    """Return the gain of each part, shape (1 + resamples, parts): observed, then of every draw."""
    rows = pair.rows
    effects = pair.linear_effects(metric, seed)
    if effects is None:
        stacked = [pair.stacked(part) for part in parts]
        batches = [
            np.stack([_swapped(columns, part, swaps, metric) for columns, part in zip(stacked, parts, strict=True)], 1)
            for swaps in _swaps(rows, resamples, seed)
        ]
        return np.concatenate(batches)
    from scipy.sparse import csr_array

    differing = np.flatnonzero(effects)
    place = np.full(rows, -1)
    place[differing] = np.arange(len(differing))
    kept = [part[place[part] >= 0] for part in parts]
    values = [effects[some] / len(part) for some, part in zip(kept, parts, strict=True)]
    starts = np.cumsum([0, *map(len, kept)])
    weights = csr_array(
        (np.concatenate(values), place[np.concatenate(kept)], starts), shape=(len(parts), len(differing))
    )
    signs = ((1.0 - 2.0 * swaps[:, differing]) for swaps in _swaps(rows, resamples, seed))
    return np.concatenate([(weights @ batch.T).T for batch in signs])


def _swaps(rows: int, resamples: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield batches of draws, shape (draws, rows): 1 where the answers are swapped; nowhere in the first draw."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // rows)
    for start in range(0, 1 + resamples, at_once):
        draws = min(at_once, 1 + resamples - start)
        bits = rng.integers(0, 256, (draws, (rows + 7) // 8), np.uint8)
        swaps = np.unpackbits(bits, axis=1, count=rows)
        if start == 0:
            swaps[0] = 0
        yield swaps


def _swapped(columns: Columns, part: Rows, swaps: NDArray[np.uint8], metric: Metric) -> Floats:
    """Return a part's gain in each draw, shape (draws,); `columns` has both models' rows of the part."""
    first = np.arange(len(part)) + len(part) * swaps[:, part].astype(np.intp)
    second = (first + len(part)) % (2 * len(part))
    return metric.score(columns, first) - metric.score(columns, second)


def _refuse_nan(drawn: Sequence[Floats], metric: Metric) -> None:
    for gains in drawn:
        wrong = ~np.isfinite(gains).all(axis=0)
        if wrong.any():
            raise UserError(
                f"{metric.name} is not a finite number in {int(wrong.sum())} of {gains.shape[1]} slices",
                fix="Choose gate.difference.metric, gate.slices.columns or gate.slices.min_rows accordingly",
            )
