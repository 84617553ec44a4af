"""What a candidate will reach with its whole recipe: a power law through what it reached so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FEWEST_POINTS = 3
_POWER = 0.5
"""Of the error over the data. Learned from the points too it would follow their noise: there are few of them."""


def extrapolate(shares: Sequence[float], values: Sequence[float], best: float = np.inf) -> float | None:
    """The value at share 1 by `c - a * share ** -0.5`, c and a by least squares.

    Learning curves of most learners are power laws (Viering & Loog 2023, "The shape of learning
    curves"). None where there are fewer than three points, or where the last is no better than the
    first and nothing tells of a rise.

    Args:
        shares: Of the recipe, ascending, the last below 1.
        values: At these shares; more is better.
        best: What no value can exceed, 1 for an F1, say.
    """
    if len(shares) < _FEWEST_POINTS or values[-1] <= values[0]:
        return None
    slope, limit = np.polyfit(np.asarray(shares, float) ** -_POWER, np.asarray(values, float), 1)
    return max(values[-1], min(best, float(limit + slope)))
