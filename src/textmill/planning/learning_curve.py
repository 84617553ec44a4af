"""What a candidate will reach with its whole recipe: a power law through what it reached so far."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

_FEWEST_POINTS = 3
_STEEPEST = 2.0


def extrapolate(shares: Sequence[float], values: Sequence[float], best: float | None = None) -> float | None:
    """The value at share 1 by `c - a * share ** -b` (Viering & Loog 2023, "The shape of learning curves").

    None where there are fewer than three points, where the last is no better than the first, or
    where no such curve goes through them.

    Args:
        shares: Of the recipe, ascending, the last below 1.
        values: At these shares; more is better.
        best: A bound of the values, 1 for an F1, say; None for none.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    if len(shares) < _FEWEST_POINTS or values[-1] <= values[0]:
        return None
    x, y = np.asarray(shares, float), np.asarray(values, float)
    top = np.inf if best is None else best
    spread = float(y.max() - y.min())
    start = (min(float(y.max()) + 0.1 * spread, top), spread * float(x[0]) ** 0.5, 0.5)

    def power_law(share: np.ndarray, limit: float, scale: float, power: float) -> np.ndarray:
        return limit - scale * share**-power

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", OptimizeWarning)
            found, _ = curve_fit(
                power_law, x, y, start, bounds=([float(y.max()) - 1e-9, 0, 0], [top, np.inf, _STEEPEST])
            )
    except (RuntimeError, ValueError, OptimizeWarning):
        return None
    reached = float(power_law(np.asarray(1.0), *found))
    return max(reached, float(y[-1])) if np.isfinite(reached) else None
