"""Rotary positions (Su et al. 2021, "RoFormer"): a token's position is an angle, not a vector added to it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Rotation(NamedTuple):
    """Cosine and sine of each position's angles; (T, 1, d) or (B, T, 1, d), to fit heads (B, T, H, d)."""

    cosine: Tensor
    sine: Tensor


class RotaryPositions(nn.Module):
    """Precomputed rotations for positions 0 to `max_length` - 1.

    Dimension i of the first half of a head and dimension i of the second half make a plane, which
    turns by `position / base^(2i/d)`. The dot product of a query and a key so depends on how far
    apart they are, not on where they stand.

    Args:
        head_width: d, even.
        max_length: Positions.
        base: See `Architecture.rope_base`.
    """

    def __init__(self, head_width: int, max_length: int, base: float) -> None:
        super().__init__()
        frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
        angles = torch.outer(torch.arange(max_length, dtype=torch.float32), frequencies)
        angles = torch.cat([angles, angles], dim=-1)[:, None, :]
        # The sign of "rotate half" is folded into the sine's first half.
        sign = torch.ones(head_width)
        sign[: head_width // 2] = -1
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin() * sign, persistent=False)
        self.cosine: Tensor
        self.sine: Tensor

    def forward(self, positions: Tensor | slice) -> Rotation:
        """The rotations of `positions`: (B, T) of them, or a slice for the same in every row."""
        return Rotation(self.cosine[positions], self.sine[positions])


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Turn heads (B, T, H, d) by their positions' angles."""
    first, second = heads.chunk(2, dim=-1)
    return heads * rotation.cosine + torch.cat([second, first], dim=-1) * rotation.sine
