"""Sums over the ranks of a training."""

from __future__ import annotations

import torch.distributed
from torch import Tensor


def rank_count() -> int:
    """Return the number of ranks that train together; 1 without torch.distributed."""
    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if connected else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of every rank's `values`, without gradient. All ranks must call this."""
    if rank_count() == 1:
        return values
    summed = values.detach().clone()
    torch.distributed.all_reduce(summed)
    return summed
