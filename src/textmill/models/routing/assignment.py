"""Assignment of tokens to experts, sorted by expert so that each expert's tokens are contiguous."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

_WORTH_A_PRODUCT = 64
"""Number of rows whose computation takes about as long as the overhead of one more product."""


@dataclass(frozen=True)
class Assignment:
    """M pairs of a token and an expert, sorted by expert.

    Attributes:
        tokens: Index of each pair's token, (M,).
        weights: Factor of the expert's output, (M,); the router gets its gradient here.
        counts: Pairs of each expert, (E,).
        load: Tokens assigned to each expert before any are dropped, (E,).
        n_tokens: Number of tokens N.
    """

    tokens: Tensor
    weights: Tensor
    counts: Tensor
    load: Tensor
    n_tokens: int

    def dispatch(self, states: Tensor) -> Tensor:
        """Return rows (M, D) for the experts, in their order, from states (N, D)."""
        return states.index_select(0, self.tokens)

    def combine(self, rows: Tensor) -> Tensor:
        """Return states (N, D): each token's weighted sum of its experts' outputs, zero without experts."""
        weighted = rows * self.weights[:, None].to(rows.dtype)
        return weighted.new_zeros(self.n_tokens, rows.size(1)).index_add(0, self.tokens, weighted)

    def padded(self) -> Assignment:
        """Add pairs of weight 0 so that the numbers of pairs are equal for all experts, or at least rounded.

        On CPUs, oneDNN compiles a kernel for every new shape of a low-precision product, which takes
        longer than the product; rounded numbers give few shapes. With equal numbers, one batched
        product serves all experts, which is worth some unused rows.
        """
        counts: list[int] = self.counts.tolist()
        largest = _round_number(max(counts))
        if largest * len(counts) <= sum(counts) + _WORTH_A_PRODUCT * len(counts):
            padded = [largest] * len(counts)
        else:
            padded = [_round_number(count) for count in counts]
        starts = accumulate(padded, initial=0)
        places = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=False)])
        tokens = self.tokens.new_zeros(sum(padded)).index_copy(0, places, self.tokens)
        weights = self.weights.new_zeros(sum(padded)).index_copy(0, places, self.weights)
        return Assignment(tokens, weights, torch.tensor(padded), self.load, self.n_tokens)


def _round_number(count: int) -> int:
    """Round up to a multiple of 16 or, above 128, of an eighth of the next power of two."""
    unit = max(16, (1 << (count - 1).bit_length()) // 8) if count else 1
    return -(-count // unit) * unit


def sort_and_group(
    experts: Tensor, weights: Tensor, n_experts: int, capacity: int | None = None, before: Tensor | None = None
) -> Assignment:
    """Group tokens by the k experts (N, k) that they have chosen, with weights (N, k).

    An expert takes at most `capacity` tokens; the first ones in the batch are kept. `before` (E,) is the load of
    earlier parts of the batch, which have taken their places.
    """
    n_tokens, k = experts.shape
    chosen = experts.flatten()
    order = chosen.argsort(stable=True)
    # Like bincount, which on a GPU waits for the device and breaks compiled graphs
    load = chosen.new_zeros(n_experts).scatter_add(0, chosen, torch.ones_like(chosen))
    counts = load
    if capacity is not None:
        places = (capacity - (torch.zeros_like(load) if before is None else before)).clamp(min=0)
        counts = torch.minimum(load, places)
        starts = load.cumsum(0) - load
        place = torch.arange(len(order), device=order.device) - starts[chosen[order]]
        order = order[place < places[chosen[order]]]
    return Assignment(order // k, weights.flatten()[order], counts, load, n_tokens)


def group_pairs(taken: Tensor, weights: Tensor) -> Assignment:
    """Group tokens by the experts that have taken them, (N, E), with weights (N, E)."""
    expert, token = taken.t().nonzero(as_tuple=True)
    load = taken.sum(dim=0)
    return Assignment(token, weights[token, expert], load, load, len(taken))
