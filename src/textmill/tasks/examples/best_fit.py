"""Documents packed whole into windows by best fit (Ding et al. 2024, "Fewer Truncations Improve Language Modeling")."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.tasks.examples.packing import PackedWindows, TokenStream
from textmill.tasks.examples.rows import Examples

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("textmill")


def best_fit(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Return the window of each piece, shape (pieces,), by best-fit-decreasing bin packing.

    The longest piece goes first, into the fullest window that has room for it. Pieces of one length are placed
    together, so that the time is linear in their number, plus a term in the square of `capacity`.

    Args:
        lengths: Tokens of each piece, at most `capacity`, in descending order.
        capacity: Tokens of a window.
    """
    windows = np.empty(len(lengths), np.int64)
    room: dict[int, list[NDArray[np.int64]]] = {}  # free tokens -> windows
    count = 0
    values, firsts = np.unique(-lengths, return_index=True)
    for length, first, last in zip((-values).tolist(), firsts, [*firsts[1:], len(lengths)], strict=True):
        while first < last:
            free = min((each for each in room if each >= length), default=None)
            if free is None:
                free, opened = capacity, np.arange(count, count + -(-(last - first) // (capacity // length)))
                count += len(opened)
            else:
                opened = np.concatenate(room.pop(free))
            each = free // length  # pieces of this length that a window takes
            used = opened[: -(-(last - first) // each)]
            placed = np.repeat(used, each)[: last - first]
            windows[first : first + len(placed)] = placed
            first += len(placed)
            rest = len(placed) - each * (len(used) - 1)  # in the last of them
            for left, those in (
                (free - each * length, used[:-1]),
                (free - rest * length, used[-1:]),
                (free, opened[len(used) :]),
            ):
                if len(those):
                    room.setdefault(left, []).append(those)
    return windows


@dataclass(frozen=True)
class _Plan:
    """Pieces by window; `lengths` descend, `order` sorts them by window, `begins` are the windows' first in it."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    order: NDArray[np.int64]
    begins: NDArray[np.int64]
    fills: NDArray[np.int64]


class BestFitWindows(PackedWindows):
    """Windows in which no document is cut that fits into one; elsewhere than in training they are `PackedWindows`.

    A longer document is cut into windows of its own and a rest. Each token is a target once in an epoch: a window
    begins with the token before its first, which ends another document or belongs to the same. Each epoch exchanges
    pieces of one length, so that documents meet others, and number and lengths of the windows stay.
    """

    def __init__(self, table: pa.Table, length: int) -> None:
        super().__init__(table, length)
        self._plan: _Plan | None = None

    def in_epoch(self, epoch: int, seed: int) -> Examples:
        """Return the windows of an epoch of training."""
        if self._plan is None:
            self._plan = self._packed()
        plan = self._plan
        exchanged = np.lexsort((np.random.default_rng((seed, epoch)).random(len(plan.starts)), -plan.lengths))
        return _FittedWindows(self._stream, plan, plan.starts[exchanged])

    def _packed(self) -> _Plan:
        starts, lengths = _pieces(self._stream, self._length)
        descending = np.argsort(-lengths, kind="stable")
        starts, lengths = starts[descending], lengths[descending]
        windows = best_fit(lengths, self._length)
        fills = np.bincount(windows, weights=lengths).astype(np.int64)
        _, parts = np.unique(self._stream.row_of(starts), return_counts=True)
        log.info(
            "packing: best fit cuts %d of %d documents, concatenation cuts %d; windows are %.1f %% full",
            int((parts > 1).sum()),
            len(parts),
            cut_documents(self._stream, self._length),
            100 * fills.sum() / max(1, len(fills) * self._length),
        )
        order = np.argsort(windows, kind="stable")
        return _Plan(starts, lengths, order, np.cumsum([0, *np.bincount(windows)]), fills)


class _FittedWindows(Examples):
    """The windows of one epoch."""

    def __init__(self, stream: TokenStream, plan: _Plan, starts: NDArray[np.int64]) -> None:
        self._stream = stream
        self._plan = plan
        self._starts = starts
        self.lengths: NDArray[np.int64] = plan.fills

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """Return `input_ids` of each window, and `document_ids`: the row of each token."""
        windows = [self._window(row) for row in rows]
        return {"input_ids": [ids for ids, _ in windows], "document_ids": [documents for _, documents in windows]}

    def _window(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        plan, stream = self._plan, self._stream
        slots = plan.order[plan.begins[row] : plan.begins[row + 1]]
        # The rest of a long document first: its first token follows the one before it
        rests = ~np.isin(self._starts[slots], stream.starts)
        slots = slots[np.argsort(~rests, kind="stable")]
        before = int(self._starts[slots[0]]) - 1
        positions = [np.array([before % len(stream)])]  # the last token of the stream, too, ends a document
        positions += [np.arange(self._starts[slot], self._starts[slot] + plan.lengths[slot]) for slot in slots]
        ids = [stream.take(int(part[0]), len(part)) for part in positions]
        return np.concatenate(ids), stream.row_of(np.concatenate(positions))


def cut_documents(stream: TokenStream, length: int) -> int:
    """Return how many documents concatenation cuts, of those that fit into a window or not."""
    ends = np.append(stream.starts[1:], len(stream)) - 1
    return int((stream.starts // length != ends // length).sum())


def _pieces(stream: TokenStream, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and length of each document; of a longer one than `length`, of its parts."""
    sizes = np.append(stream.starts[1:], len(stream)) - stream.starts
    parts = -(-sizes // length)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = np.repeat(stream.starts, parts) + number * length
    return starts, np.minimum(length, np.repeat(stream.starts + sizes, parts) - starts)
