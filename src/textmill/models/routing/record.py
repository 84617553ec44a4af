"""Record of one layer's routing, for the losses and for monitoring."""

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
        load: Tokens assigned to each expert before any are dropped, (E,).
        counts: Tokens that each expert took, (E,).
        probabilities: Probabilities of the router, (N, E), without gradient; None if it has none.
        losses: Terms of the training loss, by name, multiplied by their coefficients.
    """

    load: Tensor
    counts: Tensor
    probabilities: Tensor | None
    losses: dict[str, Tensor]

    @classmethod
    def of(cls, routing: Routing) -> RoutingRecord:
        """Return the record of a router's result."""
        probabilities = None if routing.probabilities is None else routing.probabilities.detach()
        assignment = routing.assignment
        return cls(assignment.load, assignment.counts, probabilities, routing.losses)

    @property
    def dropped(self) -> Tensor:
        """Share of the tokens dropped by full experts, a scalar."""
        return 1 - self.counts.sum() / self.load.sum().clamp(min=1)

    def metrics(self) -> dict[str, float]:
        """Compute the balance and confidence of the router; this waits for the device.

        Returns:
            `load_entropy` (1 in perfect balance, 0 if one expert takes all), `load_max_over_mean`,
            `dropped_share`, and `confidence`: the mean over the tokens of the largest probability.
        """
        load = self.load.double()
        shares = load / load.sum().clamp(min=1)
        entropy = torch.special.entr(shares).sum() / torch.tensor(float(len(load))).log()
        metrics = {
            "load_entropy": float(entropy),
            "load_max_over_mean": float(shares.max() * len(load)),
            "dropped_share": float(self.dropped),
        }
        if self.probabilities is not None:
            metrics["confidence"] = float(self.probabilities.max(dim=-1).values.mean())
        return metrics
