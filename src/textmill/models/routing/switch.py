"""Switch routing: each token takes one expert, weighted by its probability."""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.config.types import Fraction
from textmill.models.routing.base import GatedRouter, Routing, TokenRule


class Switch(GatedRouter):
    """Top-1 routing of the Switch Transformer (Fedus et al. 2021).

    The weight is the unnormalised probability: divided by its sum it would always be 1, and the
    router would get no gradient.
    """

    class Config(GatedRouter.Config):
        """Option `jitter`: in training, inputs are multiplied by random numbers within 1 ± this."""

        jitter: Fraction = 0.0

    config: Config

    @property
    def token_rule(self) -> TokenRule:
        """Softmax, top 1."""
        return TokenRule(1, "softmax", normalised=False)

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:  # noqa: ARG002
        """Route; see `Router.forward`."""
        if self.config.jitter and self.training:
            states = states * torch.empty_like(states).uniform_(1 - self.config.jitter, 1 + self.config.jitter)
        logits = self.logits(states)
        probabilities = logits.softmax(dim=-1)
        weights, experts = probabilities.max(dim=-1, keepdim=True)
        return self.routing(experts, weights, logits, probabilities, capacity_factor)
