"""Batches of similar lengths under a token budget, reshuffled each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from textmill.text.batches import length_batches

_BATCHES_IN_A_POOL = 50


@dataclass(frozen=True)
class BatchPlan:
    """The batches of one epoch; all ranks together compute each of them.

    Attributes:
        batches: Row numbers of each batch, in training order.
        tokens: Tokens of each batch, without padding.
        padding_share: Padding over all positions.
    """

    batches: Sequence[NDArray[np.int64]]
    tokens: Sequence[int]
    padding_share: float

    def parts(self, rank: int, ranks: int) -> list[NDArray[np.int64]]:
        """Return the rows of each batch that one of `ranks` computes: none where a batch has fewer rows than ranks."""
        return [np.array_split(batch, ranks)[rank] for batch in self.batches]


@dataclass(frozen=True)
class EpochPlanner:
    """Plans every epoch as a pure function of lengths, budget, seed and epoch number.

    Rows are shuffled, cut into pools of about fifty batches, sorted by length within a pool and cut into
    batches; the batches are then shuffled. Rows thus meet different rows each epoch, and padding stays small.
    An epoch has each row at most once. The plan does not depend on the number of ranks.

    Attributes:
        lengths: Tokens of each row, shape (n,).
        tokens: Largest number of positions of a batch, with padding.
        max_rows: Largest number of rows of a batch; None for no limit.
        seed: Seed of the order.
        limit: Number of batches that ends an epoch early; None for no limit.
    """

    lengths: NDArray[np.int64]
    _: KW_ONLY
    tokens: int
    max_rows: int | None
    seed: int
    limit: int | None = None

    def plan(self, epoch: int) -> BatchPlan:
        """Return the batches of `epoch`."""
        batches = self._batches(epoch)
        tokens = [int(self.lengths[batch].sum()) for batch in batches]
        padded = sum(len(batch) * int(self.lengths[batch].max()) for batch in batches)
        return BatchPlan(batches, tokens, 1 - sum(tokens) / padded if padded else 0.0)

    def count(self, epoch: int) -> int:
        """Return the number of batches in `epoch`."""
        return len(self._batches(epoch))

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.default_rng((self.seed, epoch))
        rows = order.permutation(len(self.lengths)).astype(np.int64)
        batches: list[NDArray[np.int64]] = []
        for pool in np.array_split(rows, self._pools()):
            batches += [pool[inside] for inside in length_batches(self.lengths[pool], self.tokens, self.max_rows)]
        return [batches[number] for number in order.permutation(len(batches))[: self.limit]]

    def _pools(self) -> int:
        mean = max(1.0, float(self.lengths.mean()))
        rows = max(1.0, self.tokens / mean)
        if self.max_rows is not None:
            rows = min(rows, self.max_rows)
        return max(1, round(len(self.lengths) / (rows * _BATCHES_IN_A_POOL)))


class BatchSampler:
    """Passes a plan's batches to a `DataLoader`, without those already used for training.

    Its length is that of the whole epoch, because Lightning counts skipped batches as fetched.
    """

    def __init__(self, batches: Sequence[NDArray[np.int64]], start: int = 0) -> None:
        self._batches = batches
        self._start = start

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches[self._start :]:
            yield batch.tolist()

    def __len__(self) -> int:
        return len(self._batches)
