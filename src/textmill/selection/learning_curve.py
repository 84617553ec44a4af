"""Extrapolation of a learning curve to the full training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MIN_POINTS = 3
_MAX_EXTRAPOLATION = 4.0  # factor from the last share to 1; from shorter beginnings the curve is unreliable
_EXPONENT = 0.5
"""Exponent of the error; fixed, because a fitted one would follow the noise of few points."""


def extrapolate(shares: Sequence[float], values: Sequence[float], best: float = np.inf) -> float | None:
    """Return the value at share 1 of `c - a * share ** -0.5`, with c and a by least squares.

    Learning curves of most learners are power laws (Viering & Loog 2023, "The shape of learning
    curves"). Return None where the extrapolation is unreliable: fewer than three points, none at
    share 0.25 or more, no rise from the first to the last, or a result above `best`.

    Args:
        shares: Shares of the full training, ascending, the last below 1.
        values: Quality at these shares; higher is better.
        best: Upper bound of the metric, such as 1 for F1.
    """
    if len(shares) < _MIN_POINTS or shares[-1] * _MAX_EXTRAPOLATION < 1 or values[-1] <= values[0]:
        return None
    slope, limit = np.polyfit(np.asarray(shares, float) ** -_EXPONENT, np.asarray(values, float), 1)
    value = float(limit + slope)
    return max(values[-1], value) if value <= best else None
