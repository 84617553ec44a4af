"""Metrics of pairs of answers, from `right`, `right_per_token`, `divergence` and `targets` of each pair."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.metrics.base import Metric, mean_of
from textmill.metrics.likelihood import rate


def rightness(lead: NDArray[Any]) -> NDArray[np.float64]:
    """Return 1 where the chosen answer leads, 0 where the rejected one does, a half at a tie; shape (n,)."""
    return np.asarray((np.sign(np.asarray(lead, float)) + 1) / 2, np.float64)


def preference_metrics() -> list[Metric]:
    """Return accuracy by likelihood, by likelihood per token, and a lower bound of the divergence per token, `kl`."""
    return [
        Metric("accuracy", mean_of("right")),
        Metric("accuracy_per_token", mean_of("right_per_token")),
        Metric("kl", rate("divergence", "targets"), higher_is_better=False),
    ]
