"""Rotary positions (Su et al. 2021, "RoFormer"): a position rotates a token's queries and keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Rotation(NamedTuple):
    """Rotation of each position, (T, d) or (B, 1, T, d): cosines, repeated, and sines, negated and not."""

    cosine: Tensor
    sine: Tensor


class RotaryPositions(nn.Module):
    """Precomputed rotations for positions 0 to `max_length` - 1 of heads of even width d.

    Dimension i of the first half of a head and dimension i of the second half form a plane, which is
    rotated by `position / base^(2i/d)`. So the dot product of a query and a key depends on their
    distance, not on their positions.
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
        """Return the rotations of `positions`, (B, T), or of a slice that is the same for every row."""
        cosine, sine = self.cosine[positions].to(dtype), self.sine[positions].to(dtype)
        if isinstance(positions, slice):
            return Rotation(cosine, sine)
        return Rotation(cosine[:, None], sine[:, None])


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotate heads (B, H, T, d) by their positions' angles."""
    # Compiled on an H100 (PyTorch 2.11), the function below passes no gradient on; compilers need no such help.
    if heads.device.type != "cpu" or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return _rotate_halves(heads, *rotation)
    output: Tensor = _Rotate.apply(heads, *rotation)  # type: ignore[no-untyped-call]
    return output


class _Rotate(torch.autograd.Function):
    """Rotation whose gradient is the inverse rotation; no intermediate result is stored."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotate_halves(heads, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotate_halves(gradient, cosine, -sine), None, None


def _rotate_halves(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return (x cos θ - y sin θ, y cos θ + x sin θ), x and y the halves of the heads."""
    x, y = heads.chunk(2, dim=-1)
    return torch.cat([y, x], dim=-1).mul_(sine).add_(heads * cosine)
