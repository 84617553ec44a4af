"""Which token goes to which expert: sorted by expert, so that each expert's tokens lie side by side."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

_WORTH_A_PRODUCT = 64
"""Rows that take about as long as the overhead of one more product."""


@dataclass(frozen=True)
class Assignment:
    """M pairs of a token and an expert, sorted by expert.

    Attributes:
        tokens: Index of each pair's token, (M,).
        weights: What the expert's output is multiplied by, (M,); gradients reach the router here.
        counts: Pairs of each expert, (E,).
        load: Tokens that were meant for each expert, those dropped among them, (E,).
        n_tokens: Tokens N.
    """

    tokens: Tensor
    weights: Tensor
    counts: Tensor
    load: Tensor
    n_tokens: int

    def dispatch(self, states: Tensor) -> Tensor:
        """Rows (M, D) for the experts, the first one's first, from states (N, D)."""
        return states.index_select(0, self.tokens)

    def combine(self, rows: Tensor) -> Tensor:
        """States (N, D): each token's weighted sum of what its experts made, zero where it had none."""
        weighted = rows * self.weights[:, None].to(rows.dtype)
        return weighted.new_zeros(self.n_tokens, rows.size(1)).index_add(0, self.tokens, weighted)

    def filled_up(self) -> Assignment:
        """The same with pairs of no weight added, so that experts' numbers of pairs are equal, or at least round.

        On CPUs oneDNN makes a kernel for every new shape of a product in low precision, which takes
        longer than the product: round numbers bring the same few shapes back. Equal numbers let one
        batched product serve all experts, which is worth some rows in vain.
        """
        counts: list[int] = self.counts.tolist()
        largest = _round_number(max(counts))
        if largest * len(counts) <= sum(counts) + _WORTH_A_PRODUCT * len(counts):
            filled = [largest] * len(counts)
        else:
            filled = [_round_number(count) for count in counts]
        starts = accumulate(filled, initial=0)
        places = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=False)])
        tokens = self.tokens.new_zeros(sum(filled)).index_copy(0, places, self.tokens)
        weights = self.weights.new_zeros(sum(filled)).index_copy(0, places, self.weights)
        return Assignment(tokens, weights, torch.tensor(filled), self.load, self.n_tokens)


def _round_number(count: int) -> int:
    """The next multiple of 16, of an eighth of the next power of two above 128."""
    unit = max(16, (1 << (count - 1).bit_length()) // 8) if count else 1
    return -(-count // unit) * unit


def sort_and_group(experts: Tensor, weights: Tensor, n_experts: int, capacity: int | None = None) -> Assignment:
    """Group tokens that have chosen their experts.

    Args:
        experts: Each token's k experts, (N, k).
        weights: Of these choices, (N, k).
        n_experts: E.
        capacity: Most tokens an expert takes; those that come first in the batch have precedence.
    """
    n_tokens, k = experts.shape
    chosen = experts.flatten()
    order = chosen.argsort(stable=True)
    # As bincount, which on a GPU waits for the device and breaks compiled graphs.
    load = chosen.new_zeros(n_experts).scatter_add(0, chosen, torch.ones_like(chosen))
    counts = load
    if capacity is not None:
        counts = load.clamp(max=capacity)
        starts = load.cumsum(0) - load
        place = torch.arange(len(order), device=order.device) - starts[chosen[order]]
        order = order[place < capacity]
    return Assignment(order // k, weights.flatten()[order], counts, load, n_tokens)


def group_pairs(taken: Tensor, weights: Tensor) -> Assignment:
    """Group tokens of which each expert has taken some.

    Args:
        taken: Whether an expert takes a token, (N, E).
        weights: Of the pairs, (N, E).
    """
    expert, token = taken.t().nonzero(as_tuple=True)
    load = taken.sum(dim=0)
    return Assignment(token, weights[token, expert], load, load, len(taken))
