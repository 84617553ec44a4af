"""The dense feed-forward network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SwiGLU(nn.Module):
    """(silu(x W_gate) * x W_up) W_down with D inputs and outputs and H hidden units (Shazeer 2020)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        output: Tensor = self.down(gated(self.gate_up(states)))
        return output


def gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up for (..., 2H) with the gate in the first half."""
    if gate_up.device.type == "cpu" and torch.is_grad_enabled():
        output: Tensor = _Gated.apply(gate_up)  # type: ignore[no-untyped-call]
        return output
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _Gated(torch.autograd.Function):
    """Compute `gated` and write both gradients into one tensor, without a copy."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        opened = F.silu(gate)
        ctx.save_for_backward(gate_up, opened)
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gate_up, opened = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        to_gate, to_up = both.chunk(2, dim=-1)
        torch.mul(gradient, opened, out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        return both
