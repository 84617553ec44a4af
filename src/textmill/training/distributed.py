"""Communication with other ranks beyond Lightning's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from textmill.errors import UserError
from textmill.processes import is_launched

T = TypeVar("T")

_SIGNS_OF_LOSS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL communicator was aborted",
)


class LostRankError(UserError):
    """The end of another process that trains with this one."""


@contextmanager
def name_lost_rank() -> Iterator[None]:
    """Raise the error of a lost connection to another rank as a `LostRankError`."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistBackendError)
        if not (lost or any(sign in str(error) for sign in _SIGNS_OF_LOSS)):
            raise
        raise LostRankError(
            "another process of the training ended",
            fix="See its message, if it left one; the next run continues from the last checkpoint",
        ) from error


def connect(accelerator: str) -> None:
    """Connect the ranks that a launcher started; Lightning connects those that it starts itself."""
    if not is_launched() or torch.distributed.is_initialized():
        return
    if accelerator != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        torch.distributed.init_process_group("gloo")


def from_first(value: T) -> T:
    """Return the `value` of the first rank where the ranks are connected, else this one's. All ranks must call this."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def gather_all(value: T) -> list[T]:
    """Return every rank's `value`, in the order of ranks. All ranks must call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


def max_over_ranks(value: int) -> int:
    """Return the largest of every rank's `value`. All ranks must call this."""
    if not torch.distributed.is_initialized():
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(value, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


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
