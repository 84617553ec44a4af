"""What a candidate will reach with its whole recipe: a power law through what it reached so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FEWEST_POINTS = 3
_FURTHEST = 4.0  # times the share that was seen: a curve from a short beginning leads anywhere
_POWER = 0.5
"""Of the error over the data. Learned from the points too it would follow their noise: there are few of them."""


def extrapolate(shares: Sequence[float], values: Sequence[float], best: float = np.inf) -> float | None:
    """The value at share 1 by `c - a * share ** -0.5`, c and a by least squares.

    Learning curves of most learners are power laws (Viering & Loog 2023, "The shape of learning
    curves"). None where it cannot be told: with fewer than three points, none of them at a quarter
    or more, no rise from the first to the last, or a curve that leads beyond what is possible.

    Args:
        shares: Of the recipe, ascending, the last below 1.
        values: At these shares; more is better.
        best: What no value can exceed, 1 for an F1, say.
    """
    if len(shares) < _FEWEST_POINTS or shares[-1] * _FURTHEST < 1 or values[-1] <= values[0]:
        return None
    slope, limit = np.polyfit(np.asarray(shares, float) ** -_POWER, np.asarray(values, float), 1)
    reached = float(limit + slope)
    return max(values[-1], reached) if reached <= best else None
