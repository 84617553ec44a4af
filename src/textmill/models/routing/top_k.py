"""Top-k routing: each token takes the k experts with the highest scores."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from textmill.models.routing.base import ExpertsPerToken, GatedRouter, Routing, TokenRule


class TopK(GatedRouter):
    """Softmax over all experts, then the k largest, divided by their sum (Jiang et al. 2024, "Mixtral").

    With `noise`, training adds normal noise of a learned width to each logit, so that all experts
    are tried (Shazeer et al. 2017).
    """

    class Config(GatedRouter.Config):
        """Options.

        Attributes:
            k: Number of experts of a token.
            noise: Whether training adds noise.
            normalised: Whether the k weights are divided by their sum.
        """

        k: ExpertsPerToken = 2
        noise: bool = False
        normalised: bool = True

    config: Config

    def __init__(self, config: Any, width: int, n_experts: int, layer: int) -> None:
        super().__init__(config, width, n_experts, layer)
        self.noise_gate = nn.Linear(width, n_experts, bias=False) if config.noise else None

    @property
    def token_rule(self) -> TokenRule:
        """Softmax, top k."""
        return TokenRule(self.config.k, "softmax", self.config.normalised)

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:  # noqa: ARG002
        """Route; see `Router.forward`."""
        logits = self.logits(states)
        if self.noise_gate is not None and self.training:
            spread = F.softplus(self.noise_gate(states.flatten(0, 1).to(self.noise_gate.weight.dtype)).float())
            logits = logits + torch.randn_like(logits) * spread
        probabilities = logits.softmax(dim=-1)
        weights, experts = probabilities.topk(self.config.k, dim=-1)
        if self.config.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return self.routing(experts, weights, logits, probabilities, capacity_factor)
