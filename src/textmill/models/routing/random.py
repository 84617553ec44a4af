"""The control: any expert, by lot."""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.config.section import Section
from textmill.models.routing.assignment import sort_and_group
from textmill.models.routing.base import ExpertsPerToken, Router, Routing


class Random(Router):
    """k different experts by lot, each with weight 1/k, in evaluation too.

    What a router learns must beat this. Since the lot falls anew each time, two readings of one
    text differ unless the random state is set.
    """

    class Config(Section):
        """Options.

        Attributes:
            k: Experts of a token.
        """

        k: ExpertsPerToken = 2

    config: Config

    @property
    def experts_per_token(self) -> float:
        """K."""
        return float(self.config.k)

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:
        """Route; see `Router.forward`."""
        lots = torch.rand(token_ids.numel(), self.n_experts, device=states.device)
        experts = lots.topk(self.config.k, dim=-1).indices
        weights = torch.full(experts.shape, 1 / self.config.k, device=states.device)
        capacity = self.capacity(len(lots), capacity_factor)
        return Routing(sort_and_group(experts, weights, self.n_experts, capacity))
