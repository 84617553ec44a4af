"""Metrics of likelihood, from `nll`, a row's sum of negative log-likelihoods in nats, and `targets`, its tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from textmill.metrics.base import Metric, Outputs, Score

_LARGEST = 700
"""An exponent near the largest that is finite in double precision."""


def validation_metrics(outputs: Outputs) -> dict[str, float]:
    """Return `loss`, in nats per token of all rows, and `perplexity`."""
    loss = float(outputs["nll"].sum(dtype=float)) / max(1.0, float(outputs["targets"].sum(dtype=float)))
    return {"loss": loss, "perplexity": math.exp(min(loss, _LARGEST))}


def likelihood_answers(outputs: Outputs) -> list[dict[str, Any]]:
    """Return `loss`, in nats per token, and `perplexity` of each row."""
    losses = (outputs["nll"] / outputs["targets"]).tolist()
    return [{"loss": loss, "perplexity": math.exp(min(loss, _LARGEST))} for loss in losses]


def likelihood_metrics() -> list[Metric]:
    """Return loss in nats per token, and perplexity."""
    loss = rate("nll", "targets")
    return [
        Metric("loss", loss, higher_is_better=False),
        Metric(
            "perplexity",
            lambda columns, index: np.exp(np.minimum(loss(columns, index), _LARGEST)),
            higher_is_better=False,
        ),
    ]


def rate(total: str, unit: str) -> Score:
    """Return the score of one column's sum over another's."""
    return lambda columns, index: columns[total][index].sum(axis=1) / columns[unit][index].sum(axis=1)
