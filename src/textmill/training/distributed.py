"""Communication with other ranks beyond Lightning's own."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

T = TypeVar("T")


def gather_all(value: T) -> list[T]:
    """Return every rank's `value`, in the order of ranks. All ranks must call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whose parts lie on the ranks as a whole, and any other as it is. All ranks must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which shares its memory; all of a tensor that is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(model: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor, equal on all ranks, divided as `model` is; nothing is sent."""
    if not isinstance(model, DTensor):
        return tensor
    everywhere = [Replicate()] * model.device_mesh.ndim
    return DTensor.from_local(tensor, model.device_mesh, everywhere, run_check=False).redistribute(
        placements=model.placements
    )


def as_divided(model: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor of a checkpoint on the device of `model` and divided as it is. All ranks must call this."""
    if isinstance(tensor, DTensor):
        return tensor if isinstance(model, DTensor) else whole(tensor).to(model.device)
    return like(model, tensor.to(model.device))
