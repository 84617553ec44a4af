"""What one layer's router did with a batch, kept for the losses and for those who watch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from textmill.models.routing.base import Routing


@dataclass(frozen=True)
class RoutingRecord:
    """One layer's routing of one batch.

    Attributes:
        load: Tokens that were meant for each expert, those dropped among them, (E,).
        counts: Those of them that each expert took, (E,).
        probabilities: The router's for each token, (N, E), without gradient; None where it has none.
        losses: Terms to be added to the training loss, by name, multiplied by their coefficients.
    """

    load: Tensor
    counts: Tensor
    probabilities: Tensor | None
    losses: dict[str, Tensor]

    @classmethod
    def of(cls, routing: Routing) -> RoutingRecord:
        """The record of a router's answer."""
        probabilities = None if routing.probabilities is None else routing.probabilities.detach()
        assignment = routing.assignment
        return cls(assignment.load, assignment.counts, probabilities, routing.losses)

    @property
    def dropped(self) -> Tensor:
        """Share of the tokens that a full expert turned away, a scalar."""
        return 1 - self.counts.sum() / self.load.sum().clamp(min=1)

    def figures(self) -> dict[str, float]:
        """How balanced and how sure the router was; computed when asked for, it waits for the device.

        Returns:
            `load_entropy` (1 in perfect balance, 0 if one expert takes all), `load_max_over_mean`,
            `dropped_share`, and `confidence`: the mean over the tokens of the largest probability.
        """
        load = self.load.double()
        shares = load / load.sum().clamp(min=1)
        entropy = torch.special.entr(shares).sum() / torch.tensor(float(len(load))).log()
        figures = {
            "load_entropy": float(entropy),
            "load_max_over_mean": float(shares.max() * len(load)),
            "dropped_share": float(self.dropped),
        }
        if self.probabilities is not None:
            figures["confidence"] = float(self.probabilities.max(dim=-1).values.mean())
        return figures
