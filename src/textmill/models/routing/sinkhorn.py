"""Tokens choose, but from scores that optimal transport has balanced."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from textmill.models.routing.base import Coefficient, GatedRouter, Routing, TokenRule

_SMALLEST = -300.0


class Sinkhorn(GatedRouter):
    """Top-1 of Sinkhorn-balanced scores, weighted by the unbalanced probability (Clark et al. 2022, "S-BASE").

    The balancing looks at the whole batch, later tokens among it, so it happens in training only;
    in evaluation a token takes the expert with the largest score.
    """

    looks_ahead = True

    class Config(GatedRouter.Config):
        """Options.

        Attributes:
            iterations: Of Sinkhorn's algorithm.
        """

        iterations: Annotated[int, Field(ge=1)] = 8
        balance: Coefficient = 0.0

    config: Config

    @property
    def token_rule(self) -> TokenRule:
        """Softmax, the largest."""
        return TokenRule(1, "softmax", normalised=False)

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:  # noqa: ARG002
        """Route; see `Router.forward`."""
        logits = self.logits(states)
        probabilities = logits.softmax(dim=-1)
        choice = sinkhorn(logits.detach(), self.config.iterations) if self.training else logits
        experts = choice.argmax(dim=-1, keepdim=True)
        weights = probabilities.gather(1, experts)
        return self.routing(experts, weights, logits, probabilities, capacity_factor)


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Logarithm of the transport plan between tokens and equally large experts (Sinkhorn 1964; Cuturi 2013).

    Columns and rows of exp(logits), (N, E), are scaled in turn until each row sums to 1 and each
    column to N / E.
    """
    # Scaled with the exponentials themselves, in double precision, whose range suffices: two small products each.
    shifted = (logits - logits.amax(dim=1, keepdim=True)).double().clamp(min=_SMALLEST)
    kernel = shifted.exp()
    rows = kernel.new_ones(len(kernel))
    for _ in range(iterations):
        columns = len(kernel) / kernel.size(1) / (rows @ kernel)
        rows = 1 / (kernel @ columns)
    return (shifted + columns.log() + rows.log()[:, None]).to(logits.dtype)
