"""Cross-entropy over a large vocabulary without storing all logits.

The logits of B x T tokens over V entries are by far the largest tensor in the training of a language
model: 8 x 1024 tokens over 50,257 entries take 1.6 GB in float32, three times that with softmax and
gradient. Here logits, loss and gradient are computed for one chunk of tokens at a time; only the
gradients of hidden states and output weights are stored (as in Liger Kernel, Hsu et al. 2024, and
"Cut Your Losses", Wijmans et al. 2024). The peak memory of the logits is constant.

The chunked `linear_cross_entropy` of PyTorch 2.13 does not return the loss of each token beside the mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position without a target, such as padding."""
LOGITS_AT_ONCE = 1 << 22
"""Logits stored at a time: 16 MB in float32."""
LOGITS_AT_ONCE_ON_A_GPU = 1 << 27
"""Half a gigabyte, for products large enough for a GPU."""


def mean_cross_entropy(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    logits_at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean negative log-likelihood of the labels, and that of every token.

    Equals `cross_entropy(states @ weight.T, labels, ignore_index=-100)` and its gradients, label
    smoothing included.

    Args:
        states: Hidden states after the last norm, shape (..., D).
        weight: Output embedding, shape (V, D).
        labels: Token ids of the targets, shape (...); `IGNORED` for none.
        label_smoothing: Share of each target spread evenly over all entries (Szegedy et al. 2016).
        logits_at_once: Approximate logits stored at a time; None: a number that suits the device.

    Returns:
        The mean over the targets, a float32 scalar with gradient; and the unsmoothed negative
        log-likelihood of each token in nats, shape (...), 0 where ignored, without gradient.
    """
    if logits_at_once is None:
        logits_at_once = LOGITS_AT_ONCE if states.device.type == "cpu" else LOGITS_AT_ONCE_ON_A_GPU
    loss, each = _MeanCrossEntropy.apply(  # type: ignore[no-untyped-call]
        states.reshape(-1, states.shape[-1]), weight, labels.reshape(-1), label_smoothing, logits_at_once
    )
    return loss, each.view(labels.shape)


def negative_log_likelihoods(
    states: Tensor, weight: Tensor, labels: Tensor, *, logits_at_once: int | None = None
) -> Tensor:
    """Return the negative log-likelihood of each label in nats, float32 with gradient, shape (...); 0 where ignored.

    Arguments are those of `mean_cross_entropy`. Its gradient has one weight for all tokens; here each has its own,
    known only in the backward pass. So the logits of trained output weights are computed twice, those of frozen
    ones once. Positions without a label cost nothing.
    """
    if logits_at_once is None:
        logits_at_once = LOGITS_AT_ONCE if states.device.type == "cpu" else LOGITS_AT_ONCE_ON_A_GPU
    flat = labels.reshape(-1)
    kept = (flat != IGNORED).nonzero().squeeze(1)
    chosen = states.reshape(-1, states.shape[-1])[kept]
    each: Tensor = _NegativeLogLikelihoods.apply(chosen, weight, flat[kept], logits_at_once)  # type: ignore[no-untyped-call]
    return each.new_zeros(flat.shape).index_put((kept,), each).view(labels.shape)


def count_targets(labels: Tensor) -> int:
    """Return the number of labels that are not `IGNORED`."""
    return int((labels != IGNORED).sum())


class _MeanCrossEntropy(torch.autograd.Function):
    """Compute the gradients together with the loss, while a chunk's logits are in memory."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, smoothing: float, logits_at_once: int
    ) -> tuple[Tensor, Tensor]:
        # Gradients are off in `forward`; `needs_input_grad` says which ones the caller needs
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        targets = labels != IGNORED
        share = 1 / targets.sum().clamp(min=1)
        each = torch.empty(labels.shape, dtype=torch.float32, device=labels.device)
        spread = torch.zeros((), device=labels.device)
        state_gradient = torch.empty_like(states) if needed else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needed else None
        rows = max(16, logits_at_once // weight.shape[0])
        for start in range(0, len(labels), rows):
            chunk = slice(start, start + rows)
            logits = (states[chunk] @ weight.T).float()
            label = labels[chunk].clamp(min=0).unsqueeze(1)
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            each[chunk] = ((normaliser - logits.gather(1, label)).squeeze(1)) * targets[chunk]
            if smoothing:
                spread += ((normaliser - logits.mean(dim=1, keepdim=True)).squeeze(1) * targets[chunk]).sum()
            if state_gradient is None or weight_gradient is None:
                continue
            # d loss / d logits = (softmax - target) / targets, computed in place
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, label, torch.full_like(label, smoothing - 1, dtype=gradient.dtype))
            if smoothing:
                gradient -= smoothing / weight.shape[0]
            gradient *= (share * targets[chunk]).unsqueeze(1)
            gradient = gradient.to(states.dtype)
            state_gradient[chunk] = gradient @ weight
            weight_gradient += gradient.T @ states[chunk]
        if state_gradient is not None and weight_gradient is not None:
            ctx.save_for_backward(state_gradient, weight_gradient.to(weight.dtype))
        ctx.mark_non_differentiable(each)
        return ((1 - smoothing) * each.sum() + smoothing * spread) * share, each

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        state_gradient, weight_gradient = ctx.saved_tensors
        return state_gradient * gradient, weight_gradient * gradient, None, None, None


class _NegativeLogLikelihoods(torch.autograd.Function):
    """Compute each token's gradient with respect to its state at once, and that of the weights in the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, logits_at_once: int) -> Tensor:
        ctx.rows = max(16, logits_at_once // weight.shape[0])
        each = torch.empty(labels.shape, dtype=torch.float32, device=labels.device)
        normalisers = torch.empty_like(each)
        state_gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(labels), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            logits = (states[chunk] @ weight.T).float()
            normalisers[chunk] = logits.logsumexp(dim=1)
            label = labels[chunk].unsqueeze(1)
            each[chunk] = normalisers[chunk] - logits.gather(1, label).squeeze(1)
            if state_gradient is not None:
                gradient = _softmax_minus_target(logits, normalisers[chunk], label)
                state_gradient[chunk] = gradient.to(states.dtype) @ weight
        needs_weight = ctx.needs_input_grad[1]
        ctx.save_for_backward(state_gradient, *((states, weight, labels, normalisers) if needs_weight else ()))
        return each

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        state_gradient, *rest = ctx.saved_tensors
        scaled = None if state_gradient is None else state_gradient * gradient.unsqueeze(1).to(state_gradient.dtype)
        if not rest:
            return scaled, None, None, None
        states, weight, labels, normalisers = rest
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(labels), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            logits = (states[chunk] @ weight.T).float()
            part = _softmax_minus_target(logits, normalisers[chunk], labels[chunk].unsqueeze(1))
            part *= gradient[chunk].unsqueeze(1)
            weight_gradient += part.to(states.dtype).T @ states[chunk]
        return scaled, weight_gradient.to(weight.dtype), None, None


def _softmax_minus_target(logits: Tensor, normalisers: Tensor, label: Tensor) -> Tensor:
    """Return the derivative of each negative log-likelihood with respect to its logits, computed in place."""
    gradient = logits.sub_(normalisers.unsqueeze(1)).exp_()
    return gradient.scatter_add_(1, label, torch.full_like(label, -1, dtype=gradient.dtype))
