"""Soft mixture of experts: experts process weighted means of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from textmill.config.section import Section
from textmill.models.routing.assignment import Assignment
from textmill.models.routing.base import Router, Routing


@dataclass(frozen=True)
class Mixture(Assignment):
    """Slots that are weighted means of a sequence's tokens, and the weights to map them back.

    The weights (B, T, E, S) sum to one over the tokens into slots, and over all slots out of them.
    """

    into_slots: Tensor
    out_of_slots: Tensor

    def dispatch(self, states: Tensor) -> Tensor:
        """Return slots (E * B * S, D), in the experts' order."""
        batch, length = self.into_slots.shape[:2]
        sequences = states.view(batch, length, -1)
        slots = torch.einsum("btes,btd->ebsd", self.into_slots.to(states.dtype), sequences)
        return slots.flatten(0, 2)

    def padded(self) -> Mixture:
        """Return itself: batches of a size have the same number of slots."""
        return self

    def combine(self, rows: Tensor) -> Tensor:
        """Return states (N, D) from the experts' slots."""
        batch, _, n_experts, slots = self.out_of_slots.shape
        outputs = rows.view(n_experts, batch, slots, -1)
        return torch.einsum("btes,ebsd->btd", self.out_of_slots.to(rows.dtype), outputs).flatten(0, 1)


class Soft(Router):
    """Soft mixture of experts (Puigcerver et al. 2023): fully differentiable, no token is dropped.

    Designed for images. In a causal model, every slot mixes tokens of the whole sequence, so each
    token sees later ones, in training and in evaluation: the likelihood is invalid and text cannot be
    generated. It serves as a comparison and a warning.
    """

    looks_ahead = True
    causal_in_evaluation = False

    class Config(Section):
        """Option `slots`: slots of each expert for a sequence."""

        slots: Annotated[int, Field(ge=1)] = 8

    config: Config

    def __init__(self, config: Any, width: int, n_experts: int, layer: int) -> None:
        super().__init__(config, width, n_experts, layer)
        self.slot_scores = nn.Linear(width, n_experts * config.slots, bias=False)

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:  # noqa: ARG002
        """Route; see `Router.forward`."""
        batch, length, _ = states.shape
        scores = self.slot_scores(states).float()
        by_slot = (batch, length, self.n_experts, self.config.slots)
        into_slots = scores.softmax(dim=1).view(by_slot)
        out_of_slots = scores.softmax(dim=-1).view(by_slot)
        probabilities = out_of_slots.sum(dim=-1).flatten(0, 1)
        counts = torch.full((self.n_experts,), batch * self.config.slots, device=states.device)
        nothing = counts.new_empty(0)
        mixture = Mixture(nothing, nothing, counts, counts, batch * length, into_slots, out_of_slots)
        return Routing(mixture, probabilities)
