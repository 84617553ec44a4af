"""Root-mean-square normalisation (Zhang & Sennrich 2019)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """x / √(mean(x²) + ε) times a learned gain, over the last dimension, in the precision of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        gain, epsilon = self.weight, self.eps or 0.0
        if x.device.type == "cpu" and torch.is_grad_enabled():
            output: Tensor = _FewKernels.apply(x, gain, epsilon)  # type: ignore[no-untyped-call]
            return output
        return F.rms_norm(x, self.normalized_shape, gain.to(x.dtype), epsilon)


class _FewKernels(torch.autograd.Function):
    """RMS norm with about half of the passes over memory that PyTorch's composition takes on CPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_().div_(x.size(-1))
        scale = mean_square.add_(epsilon).rsqrt_().to(x.dtype)
        normalised = x * scale
        ctx.save_for_backward(normalised, scale, gain)
        output: Tensor = normalised * gain.to(x.dtype)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normalised, scale, gain = ctx.saved_tensors
        gain_low = gain.to(normalised.dtype)
        along = (normalised * gradient).reshape(-1, gain.numel())
        # Scaling x changes nothing, so the gradient's component along x is removed
        mean = (along @ gain_low).view(scale.shape).div_(gain.numel())
        across = torch.addcmul(gradient * gain_low, normalised, mean, value=-1)
        return across.mul_(scale), along.sum(dim=0, dtype=gain.dtype), None
