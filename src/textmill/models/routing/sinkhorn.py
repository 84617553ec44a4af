"""Sinkhorn routing: tokens choose by scores that optimal transport has balanced."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from textmill.models.routing.base import Coefficient, GatedRouter, Routing, TokenRule

_SMALLEST = -300.0


class Sinkhorn(GatedRouter):
    """Top-1 of Sinkhorn-balanced scores, weighted by the unbalanced probability (Clark et al. 2022, "S-BASE").

    Balancing depends on the whole batch, later tokens included, so it is used in training only. In
    evaluation, a token takes the expert with the highest score.
    """

    looks_ahead = True
    assigns_batch = True

    class Config(GatedRouter.Config):
        """Options of `GatedRouter`, and `iterations` of Sinkhorn's algorithm."""

        iterations: Annotated[int, Field(ge=1)] = 8
        balance: Coefficient = 0.0

    config: Config

    @property
    def token_rule(self) -> TokenRule:
        """Softmax, top 1."""
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
    """Return the logarithm of the transport plan from tokens to equally large experts (Sinkhorn 1964; Cuturi 2013).

    Columns and rows of exp(logits), (N, E), are scaled in turn until each row sums to 1 and each
    column to N / E.
    """
    # Exponentials in double precision have enough range, and take only two small products each
    shifted = (logits - logits.amax(dim=1, keepdim=True)).double().clamp(min=_SMALLEST)
    kernel = shifted.exp()
    rows = kernel.new_ones(len(kernel))
    for _ in range(iterations):
        columns = len(kernel) / kernel.size(1) / (rows @ kernel)
        rows = 1 / (kernel @ columns)
    return (shifted + columns.log() + rows.log()[:, None]).to(logits.dtype)
