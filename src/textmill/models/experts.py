"""Mixture of experts: a router, E feed-forward networks, and shared ones."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from textmill.models.architecture import Architecture, round_up
from textmill.models.feed_forward import SwiGLU, gated
from textmill.models.precision import compute_dtype
from textmill.models.routing.base import build_router
from textmill.models.routing.record import RoutingRecord

# Grouped matrix products on GPUs require rows that are a multiple of 16 bytes long
_MULTIPLE_OF = 8


class Experts(nn.Module):
    """E SwiGLU networks with stacked weights: (E, 2H, D) and (E, D, H)."""

    def __init__(self, n_experts: int, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(n_experts, 2 * hidden_width, width))
        self.down = nn.Parameter(torch.empty(n_experts, width, hidden_width))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Map rows (M, D), sorted by expert, to (M, D); `counts` (E,) are the rows of each expert."""
        ends: Tensor | None = counts.cumsum(0).to(torch.int32)
        if rows.device.type == "cpu" and len(rows) and bool((counts == counts[0]).all()):
            rows, ends = rows.view(len(counts), -1, rows.size(-1)), None
        output = grouped_linear(gated(grouped_linear(rows, self.gate_up, ends)), self.down, ends)
        return output.view(-1, output.size(-1))


def grouped_linear(rows: Tensor, weights: Tensor, ends: Tensor | None) -> Tensor:
    """Multiply rows by their expert's weights (E, O, I): one kernel on GPUs, one product for each expert on CPUs.

    Rows are (M, I), sorted by expert, with the end of each expert's rows, (E,) int32; or (E, C, I)
    with None, which is one batched product.
    """
    if not rows.numel():  # a router by threshold may choose no token; the kernels need at least one
        return rows.new_empty(0, weights.size(1))
    dtype = compute_dtype(rows)
    return F.grouped_mm(rows.to(dtype), weights.to(dtype).transpose(-2, -1), offs=ends)


def _needs_few_shapes(states: Tensor) -> bool:
    """Return whether products with varying numbers of rows are slow; see `Assignment.padded`."""
    return states.device.type == "cpu" and states.dtype != torch.float32


class MixtureOfExperts(nn.Module):
    """Sort tokens by expert, apply the experts, and sum the outputs of each token."""

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
        """Map (B, T, D), with token ids (B, T), to (B, T, D), and return the routing record.

        Tokens are dropped in training only: predictions must not depend on other rows of a batch.
        """
        routing = self.router(states, token_ids, self.capacity_factor if self.training else None)
        flat = states.flatten(0, 1).to(compute_dtype(states))
        assignment = routing.assignment.padded() if _needs_few_shapes(flat) else routing.assignment
        rows = self.experts(assignment.dispatch(flat), assignment.counts)
        output = assignment.combine(rows).view(states.shape)
        if self.shared is not None:
            output = output + self.shared(states)
        record = RoutingRecord.of(routing)
        if self.router.idle:
            record = replace(record, load=torch.zeros_like(record.load))
        if self.training:
            self.router.load = record.load.detach()
        return output, record
