"""Regularising loss terms."""

from __future__ import annotations

from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher, student) of logits (B, labels) over a temperature, times its square, averaged over rows.

    The square keeps the size of the gradients (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").
    """
    ours, theirs = ((logits / temperature).log_softmax(dim=-1) for logits in (student, teacher))
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(dim=-1).mean()


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean of KL(p, q) and KL(q, p) of two sets of logits (B, labels), averaged over the rows."""
    p, q = first.log_softmax(dim=-1), second.log_softmax(dim=-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=-1).mean() / 2
