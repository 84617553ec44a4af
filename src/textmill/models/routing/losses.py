"""Loss terms that keep routers balanced and their logits small."""

from __future__ import annotations

from torch import Tensor


def load_balancing_loss(probabilities: Tensor, load: Tensor) -> Tensor:
    """E Σ_e f_e P_e, 1 in perfect balance (Fedus et al. 2021, eq. 4).

    Args:
        probabilities: The router's, (N, E); P_e is their mean over the tokens.
        load: Choices that fell on each expert, (E,); f_e is its share of them all, a constant to
            the gradient. transformers counts f_e per token instead, so k times as much.
    """
    shares = load.to(probabilities.dtype) / load.sum().clamp(min=1)
    return len(load) * (shares * probabilities.mean(dim=0)).sum()


def importance_loss(probabilities: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' summed probabilities (Shazeer et al. 2017, eq. 7)."""
    importance = probabilities.sum(dim=0)
    return importance.var(correction=0) / importance.mean().square()


def router_z_loss(logits: Tensor) -> Tensor:
    """Mean squared log-sum-exp of the router's logits (N, E) (Zoph et al. 2022, "ST-MoE", eq. 5)."""
    return logits.logsumexp(dim=-1).square().mean()
