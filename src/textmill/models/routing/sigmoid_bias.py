"""Balance without a loss: a bias favours experts with little load."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textmill.models.routing.base import Coefficient, ExpertsPerToken, GatedRouter, Routing, TokenRule


class SigmoidBias(GatedRouter):
    """Top k of sigmoid score plus bias, weighted by the scores alone (DeepSeek-AI 2024, "DeepSeek-V3").

    After every step the bias of an expert with more than the mean load falls by `rate`, that of one
    with less rises (Wang et al. 2024, "Auxiliary-loss-free load balancing"). The bias affects only the
    choice, so balancing does not distort gradients.
    """

    class Config(GatedRouter.Config):
        """Options.

        Attributes:
            k: Number of experts of a token.
            rate: Change of a bias in each step.
            normalised: Whether the k weights are divided by their sum.
        """

        k: ExpertsPerToken = 2
        rate: Coefficient = 0.001
        normalised: bool = True
        balance: Coefficient = 0.0
        z: Coefficient = 0.0

    config: Config

    def __init__(self, config: Any, width: int, n_experts: int, layer: int) -> None:
        super().__init__(config, width, n_experts, layer)
        self.register_buffer("bias", torch.zeros(n_experts))
        self.bias: Tensor

    @property
    def token_rule(self) -> TokenRule:
        """Sigmoid, top k."""
        return TokenRule(self.config.k, "sigmoid", self.config.normalised)

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:  # noqa: ARG002
        """Route; see `Router.forward`."""
        logits = self.logits(states)
        scores = logits.sigmoid()
        experts = (scores.detach() + self.bias).topk(self.config.k, dim=-1).indices
        weights = scores.gather(1, experts)
        if self.config.normalised:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        shares = scores / scores.sum(dim=-1, keepdim=True)
        return self.routing(experts, weights, logits, shares, capacity_factor)

    @torch.no_grad()
    def update(self, load: Tensor) -> None:
        """Move each bias by `rate` towards balance."""
        load = load.to(self.bias.dtype)
        self.bias += self.config.rate * torch.sign(load.mean() - load)
