"""The little that training itself must ask or tell the other ranks."""

from __future__ import annotations

import os
from typing import TypeVar

import torch.distributed

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this process is the one that writes and tells; known before any group is made."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")
    return all(int(os.environ.get(name, "0") or 0) == 0 for name in names)


def gather_all(value: T) -> list[T]:
    """`value` of every rank, in the order of ranks, on every rank. Must be called on all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]
