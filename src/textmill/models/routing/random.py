"""Random routing, the control."""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.config.section import Section
from textmill.models.routing.base import ExpertsPerToken, Router, Routing


class Random(Router):
    """k distinct random experts, each with weight 1/k, in evaluation too.

    A learned router must beat this one. Repeated evaluations of a text differ unless the random
    state is set.
    """

    class Config(Section):
        """Option `k`: number of experts of a token."""

        k: ExpertsPerToken = 2

    config: Config

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:
        """Route; see `Router.forward`."""
        lots = torch.rand(token_ids.numel(), self.n_experts, device=states.device)
        experts = lots.topk(self.config.k, dim=-1).indices
        weights = torch.full(experts.shape, 1 / self.config.k, device=states.device)
        return Routing(self.group(experts, weights, capacity_factor))
