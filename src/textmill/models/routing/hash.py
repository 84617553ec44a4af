"""Hash routing: the expert is a fixed function of the token id."""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.config.section import Section
from textmill.models.routing.base import ExpertsPerToken, Router, Routing

# Multiplicative hashing (Knuth, The Art of Computer Programming, vol. 3, 6.4): an odd number near
# 2^32 divided by the golden ratio. The middle bits of the product are well mixed.
_MULTIPLIER = 2_654_435_769
_SHIFT = 15
_BITS = 0xFFFF


class Hash(Router):
    """Random hashing of token ids, with another function in every layer (Roller et al. 2021, "Hash layers").

    Nothing is learned, so nothing can collapse. But frequent tokens overload their experts, and
    context is ignored.
    """

    class Config(Section):
        """Option `k`: number of experts of a token, consecutive modulo E, each with weight 1/k."""

        k: ExpertsPerToken = 1

    config: Config

    def __init__(self, config: Config, width: int, n_experts: int, layer: int) -> None:
        super().__init__(config, width, n_experts, layer)
        # A tensor, since torch.compile would compile a kernel for every number
        self.register_buffer("multiplier", torch.tensor(_MULTIPLIER + 2 * layer * 7919), persistent=False)
        self.multiplier: Tensor

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:
        """Route; see `Router.forward`."""
        hashed = (((token_ids.flatten() + 1) * self.multiplier) >> _SHIFT) & _BITS
        others = torch.arange(self.config.k, device=states.device)
        experts = (hashed[:, None] + others) % self.n_experts
        weights = torch.full(experts.shape, 1 / self.config.k, device=states.device)
        return Routing(self.group(experts, weights, capacity_factor))
