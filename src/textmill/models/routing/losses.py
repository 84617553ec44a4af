"""Loss terms that keep routers balanced and their logits small."""

from __future__ import annotations

from torch import Tensor


def load_balancing_loss(probabilities: Tensor, load: Tensor) -> Tensor:
    """Return E Σ_e f_e P_e, which is 1 in perfect balance (Fedus et al. 2021, eq. 4).

    P_e is the mean over the tokens of the router's probabilities (N, E); f_e is the expert's share of
    the load (E,), without gradient. transformers counts f_e per token, so its loss is k times as large.
    """
    shares = load.to(probabilities.dtype) / load.sum().clamp(min=1)
    return len(load) * (shares * probabilities.mean(dim=0)).sum()


def router_z_loss(logits: Tensor) -> Tensor:
    """Return the mean squared log-sum-exp of the router's logits (N, E) (Zoph et al. 2022, "ST-MoE", eq. 5)."""
    return logits.logsumexp(dim=-1).square().mean()
