"""Rotary positions (Su et al. 2021, "RoFormer"): a token's position is an angle, not a vector added to it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Rotation(NamedTuple):
    """Cosine and sine of each position's d/2 angles; (T, d/2) or (B, 1, T, d/2), to fit heads (B, H, T, d)."""

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
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
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
    output: Tensor = _Rotate.apply(heads, *rotation)  # type: ignore[no-untyped-call]
    return output


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back; no intermediate result is kept."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(heads, cosine, sine, 1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _turned(gradient, *ctx.saved_tensors, -1), None, None


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    """(x cos θ - y sin θ, y cos θ + x sin θ) of the halves x and y, θ reversed if `direction` is -1."""
    x, y = heads.chunk(2, dim=-1)
    turned = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    turned_x, turned_y = turned.chunk(2, dim=-1)
    torch.mul(x, cosine, out=turned_x).addcmul_(y, sine, value=-direction)
    torch.mul(y, cosine, out=turned_y).addcmul_(x, sine, value=direction)
    return turned
