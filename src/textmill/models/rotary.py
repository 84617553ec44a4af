"""Rotary positions (Su et al. 2021, "RoFormer"): a token's position is an angle, not a vector added to it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Rotation(NamedTuple):
    """Of each position: (T, d) or (B, 1, T, d), to fit heads (B, H, T, d).

    Attributes:
        cosine: Of the d/2 angles, twice over.
        sine: Of the same angles, first with a minus sign, then without.
    """

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
        self.register_buffer("cosine", torch.cat([angles.cos(), angles.cos()], dim=-1), persistent=False)
        self.register_buffer("sine", torch.cat([-angles.sin(), angles.sin()], dim=-1), persistent=False)
        self.cosine: Tensor
        self.sine: Tensor

    def forward(self, positions: Tensor | slice, dtype: torch.dtype = torch.float32) -> Rotation:
        """The rotations of `positions`: (B, T) of them, or a slice for the same in every row."""
        cosine, sine = self.cosine[positions].to(dtype), self.sine[positions].to(dtype)
        if isinstance(positions, slice):
            return Rotation(cosine, sine)
        return Rotation(cosine[:, None], sine[:, None])


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Turn heads (B, H, T, d) by their positions' angles."""
    if not torch.is_grad_enabled():
        return _turned(heads, *rotation)
    output: Tensor = _Rotate.apply(heads, *rotation)  # type: ignore[no-untyped-call]
    return output


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back; no intermediate result is kept."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(heads, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradient, cosine, -sine), None, None


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """(x cos θ - y sin θ, y cos θ + x sin θ), x and y the halves of the heads."""
    x, y = heads.chunk(2, dim=-1)
    return torch.cat([y, x], dim=-1).mul_(sine).add_(heads * cosine)
