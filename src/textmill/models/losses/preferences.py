"""Losses of pairs of answers, a chosen one and a rejected one, from their log-likelihoods.

Each function returns the loss of every pair, shape (B,). Likelihoods are in nats. `chosen` and `rejected` are sums over
an answer's tokens, or means per token where a function says so; a ratio is the model's less the reference model's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_ALMOST_SURE = -1e-6
"""Largest log-likelihood of a token for which that of all others is computed."""


def dpo(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """Compute direct preference optimisation (Rafailov et al. 2023)."""
    return -logsigmoid(beta * (chosen_ratio - rejected_ratio))


def ipo(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """Compute identity preference optimisation (Azar et al. 2024) of ratios per token, as its authors advise."""
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)) ** 2


def kto(chosen_ratio: Tensor, rejected_ratio: Tensor, divergence: Tensor, beta: float) -> Tensor:
    """Compute Kahneman-Tversky optimisation (Ethayarajh et al. 2024), the mean over both answers of a pair.

    `divergence` is the batch's estimate of the divergence from the reference, a scalar without gradient.
    """
    gain = torch.sigmoid(beta * (chosen_ratio - divergence))
    loss = torch.sigmoid(beta * (divergence - rejected_ratio))
    return 1 - (gain + loss) / 2


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Compute the odds ratio's part of ORPO (Hong et al. 2024) of likelihoods per token; `beta` is its lambda."""
    return -beta * logsigmoid(chosen - rejected - _log_1_minus_exp(chosen) + _log_1_minus_exp(rejected))


def simpo(chosen: Tensor, rejected: Tensor, beta: float, margin: float) -> Tensor:
    """Compute simple preference optimisation (Meng et al. 2024) of likelihoods per token; `margin` is its gamma."""
    return -logsigmoid(beta * (chosen - rejected) - margin)


def token_divergence(own: Tensor, reference: Tensor) -> Tensor:
    """Return a lower bound of the divergence KL(model, reference) at each token, in nats, from its log-likelihoods.

    It is the divergence of two coins: whether the next token is this one. Merging all other tokens can only lower the
    divergence (data processing inequality). It needs no sample of the model, and is finite wherever the token is rare.
    """
    own, reference = own.clamp(max=_ALMOST_SURE), reference.clamp(max=_ALMOST_SURE)
    probability = own.exp()
    other = _log_1_minus_exp(own) - _log_1_minus_exp(reference)
    return (probability * (own - reference) + (1 - probability) * other).clamp(min=0)


def _log_1_minus_exp(value: Tensor) -> Tensor:
    """Return log(1 - exp(value)) of values below 0, exact near 0 and far from it (Maechler 2012)."""
    near = value > -0.6931
    # Each branch gets values within its range, since an infinite gradient in the other one would not vanish
    close, far = torch.where(near, value, -0.5), torch.where(near, -1.0, value)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-torch.exp(far)))
