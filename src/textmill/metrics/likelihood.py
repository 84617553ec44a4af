"""Metrics of likelihood, over sums of negative log-likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Score = Callable[[Mapping[str, NDArray[Any]], NDArray[np.intp]], NDArray[np.float64]]
_LARGEST = 700
"""The largest exponent that is finite in double precision."""


def rate(total: str, unit: str) -> Score:
    """Return the score of one column's sum over another's."""
    return lambda columns, index: columns[total][index].sum(axis=1) / columns[unit][index].sum(axis=1)


def perplexity(total: str, unit: str) -> Score:
    """Return the score of the exponential of `rate`."""
    per_unit = rate(total, unit)
    return lambda columns, index: np.exp(np.minimum(per_unit(columns, index), _LARGEST))
