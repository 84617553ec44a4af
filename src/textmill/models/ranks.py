"""Sums over the ranks of a training."""

from __future__ import annotations

import torch.distributed
from torch import Tensor


def rank_count() -> int:
    """Return the number of ranks that train together; 1 without torch.distributed."""
    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if connected else 1


def before_this_rank(earlier: Tensor, values: Tensor) -> Tensor:
    """Return the sum of every rank's `earlier` and of the `values` of the ranks before this one, without gradient.

    All ranks must call this.
    """
    gathered = [torch.empty_like(torch.stack([earlier, values])) for _ in range(rank_count())]
    torch.distributed.all_gather(gathered, torch.stack([earlier, values]).detach())
    rank = torch.distributed.get_rank()
    return torch.stack([pair[0] for pair in gathered] + [pair[1] for pair in gathered[:rank]]).sum(dim=0)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of every rank's `values`, without gradient. All ranks must call this."""
    if rank_count() == 1:
        return values
    summed = values.detach().clone()
    torch.distributed.all_reduce(summed)
    return summed
