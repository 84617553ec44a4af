"""Regularising loss terms."""

from __future__ import annotations

from torch import Tensor


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean of KL(p, q) and KL(q, p) of two sets of logits (B, labels), averaged over the rows."""
    p, q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=-1).mean() / 2
