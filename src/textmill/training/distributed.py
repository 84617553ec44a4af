"""Communication with other ranks beyond Lightning's own."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed

T = TypeVar("T")


def gather_all(value: T) -> list[T]:
    """Return every rank's `value`, in the order of ranks. All ranks must call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]
