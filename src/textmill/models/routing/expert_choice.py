"""Expert choice: experts choose tokens."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from textmill.models.routing.assignment import Assignment, group_pairs
from textmill.models.routing.base import Coefficient, GatedRouter, Routing


class ExpertChoice(GatedRouter):
    """Each expert takes the same number of tokens, those with its highest scores (Zhou et al. 2022).

    The load is balanced without a loss, and tokens differ in their number of experts. But whether a
    token is chosen depends on later tokens. So in evaluation an expert takes every token that scores
    above a threshold, the running mean of the lowest score it took in training. This decides for
    each token alone, with a load that is balanced only on average.
    """

    looks_ahead = True
    assigns_batch = True

    class Config(GatedRouter.Config):
        """Options.

        Attributes:
            experts_per_token: Mean number of experts of a token.
            momentum: Momentum of the threshold's running mean.
        """

        experts_per_token: Annotated[float, Field(gt=0)] = 2.0
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
        balance: Coefficient = 0.0

    config: Config

    def __init__(self, config: Any, width: int, n_experts: int, layer: int) -> None:
        super().__init__(config, width, n_experts, layer)
        self.register_buffer("threshold", torch.full((n_experts,), 1 / n_experts))
        self.threshold: Tensor
        self._lowest = self.threshold

    @property
    def experts_per_token(self) -> float:
        """Mean number of experts of a token."""
        return self.config.experts_per_token

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:  # noqa: ARG002
        """Route; see `Router.forward`. The capacity is always each expert's even share."""
        logits = self.logits(states)
        probabilities = logits.softmax(dim=-1)
        if not self.training:
            return Routing(group_pairs(probabilities >= self.threshold, probabilities), probabilities)
        n_tokens = len(probabilities)
        capacity = min(n_tokens, self.capacity(n_tokens, 1.0) or 1)
        weights, tokens = probabilities.t().topk(capacity, dim=-1)
        self._lowest = weights[:, -1].detach()
        counts = torch.full((self.n_experts,), capacity, device=states.device)
        assignment = Assignment(tokens.flatten(), weights.flatten(), counts, counts, n_tokens)
        return self.with_losses(assignment, logits, probabilities)

    @torch.no_grad()
    def update(self, load: Tensor) -> None:  # noqa: ARG002
        """Update the threshold; not in `forward`, which runs twice with activation checkpointing."""
        self.threshold.lerp_(self._lowest, 1 - self.config.momentum)
