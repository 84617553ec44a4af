"""Record of one layer's routing, for the losses and for monitoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        balance: See `Routing`.
    """

    load: Tensor
    counts: Tensor
    probabilities: Tensor | None
    losses: dict[str, Tensor]
    balance: Tensor | None = None

    @classmethod
    def of(cls, routing: Routing) -> RoutingRecord:
        """Return the record of a router's result."""
        probabilities = None if routing.probabilities is None else routing.probabilities.detach()
        assignment = routing.assignment
        return cls(assignment.load, assignment.counts, probabilities, routing.losses, routing.balance)

    def terms(self, load: Tensor | None) -> dict[str, Tensor]:
        """Return `losses`, with the load-balancing loss by the `load` (E,) of the whole step if given."""
        if load is None or self.balance is None:
            return self.losses
        shares = load.to(self.balance.dtype) / load.sum().clamp(min=1)
        return self.losses | {"load_balancing": (shares * self.balance).sum()}

    @property
    def dropped(self) -> Tensor:
        """Share of the tokens dropped by full experts, a scalar."""
        return 1 - self.counts.sum() / self.load.sum().clamp(min=1)
