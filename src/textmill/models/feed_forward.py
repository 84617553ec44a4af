"""The dense feed-forward network."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """(silu(x W_gate) * x W_up) W_down: a linear unit gated by a smooth one (Shazeer 2020).

    Args:
        width: Of input and output, D.
        hidden_width: Of gate and up projection, H.
    """

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """From (..., D) to (..., D)."""
        output: Tensor = self.down(gated(self.gate_up(states)))
        return output


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, of (..., 2H) with the gate in the first half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
