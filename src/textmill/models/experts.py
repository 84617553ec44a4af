"""The mixture of experts: a router, E feed-forward networks of which a token passes few, shared ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from textmill.models.architecture import Architecture, round_up
from textmill.models.feed_forward import SwiGLU, gated
from textmill.models.precision import compute_dtype
from textmill.models.routing.base import build_router
from textmill.models.routing.record import RoutingRecord

# Grouped matrix products on GPUs want rows that are a multiple of 16 bytes long.
_MULTIPLE_OF = 8


class Experts(nn.Module):
    """E SwiGLU networks whose weights lie in one tensor each: (E, 2H, D) and (E, D, H).

    Args:
        n_experts: E.
        width: Of input and output, D.
        hidden_width: Of each expert, H.
    """

    def __init__(self, n_experts: int, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * hidden_width, width))
        self.down = nn.Parameter(torch.empty(n_experts, width, hidden_width))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """From rows (M, D), sorted by expert, to (M, D); `counts` (E,) says how many are each expert's."""
        ends: Tensor | None = counts.cumsum(0).to(torch.int32)
        if rows.device.type == "cpu" and len(rows) and bool((counts == counts[0]).all()):
            rows, ends = rows.view(len(counts), -1, rows.size(-1)), None
        output = grouped_linear(gated(grouped_linear(rows, self.gate_up, ends)), self.down, ends)
        return output.view(-1, output.size(-1))


def grouped_linear(rows: Tensor, weights: Tensor, ends: Tensor | None) -> Tensor:
    """Rows times their expert's weights (E, O, I): one kernel on GPUs, a product a slice on CPUs.

    Args:
        rows: (M, I), sorted by expert; or (E, C, I), equally many of each.
        weights: In the layout of `nn.Linear`.
        ends: Where each expert's rows end, (E,), int32; None for equally many, which is one batched product.
    """
    if not rows.numel():  # a router by threshold may take no token at all; the kernels want one
        return rows.new_empty(0, weights.size(1))
    dtype = compute_dtype(rows)
    return F.grouped_mm(rows.to(dtype), weights.to(dtype).transpose(-2, -1), offs=ends)


def _wants_few_shapes(states: Tensor) -> bool:
    """Whether products with ever new numbers of rows are slow, see `Assignment.filled_up`."""
    return states.device.type == "cpu" and states.dtype != torch.float32


class MixtureOfExperts(nn.Module):
    """Sort tokens by expert, let each expert transform its own, sum up what a token's experts say.

    Args:
        architecture: Its `experts` and `router`.
        layer: Counted from 0.
    """

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        config = architecture.experts
        self.layer = layer
        self.capacity_factor = config.capacity_factor
        self.router = build_router(architecture.router or {}, architecture.width, config.n_experts, layer)
        passed = self.router.experts_per_token + config.shared_experts
        hidden_width = config.hidden_width or round_up(math.ceil(architecture.dense_width / passed), _MULTIPLE_OF)
        self.experts = Experts(config.n_experts, architecture.width, hidden_width)
        self.shared: SwiGLU | None = None
        if config.shared_experts:
            self.shared = SwiGLU(architecture.width, config.shared_experts * hidden_width)

    def forward(self, states: Tensor, token_ids: Tensor) -> tuple[Tensor, RoutingRecord]:
        """From (B, T, D) and ids (B, T) to (B, T, D) and what the router did.

        Tokens are dropped in training only: what a model says must not depend on its neighbours
        in a batch.
        """
        routing = self.router(states, token_ids, self.capacity_factor if self.training else None)
        flat = states.flatten(0, 1).to(compute_dtype(states))
        assignment = routing.assignment.filled_up() if _wants_few_shapes(flat) else routing.assignment
        rows = self.experts(assignment.dispatch(flat), assignment.counts)
        output = assignment.combine(rows).view(states.shape)
        if self.shared is not None:
            output = output + self.shared(states)
        return output, RoutingRecord.of(routing)
