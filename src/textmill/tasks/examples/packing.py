"""Documents packed into rows of tokens: joined and cut, or placed whole by best fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.tasks.examples.rows import Examples

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_AT_ONCE = 1 << 20
"""Pieces that best fit places together: its lists do not grow with the data, and hardly a row is left open."""


class TokenStream:
    """The token ids of all rows in one sequence, read from the memory-mapped shards.

    Args:
        table: A table with `input_ids` and `length`.

    Attributes:
        lengths: Tokens of each row, shape (rows,).
        starts: Position of each row's first token, shape (rows,).
    """

    def __init__(self, table: pa.Table) -> None:
        self.lengths: NDArray[np.int64] = table.column("length").to_numpy().astype(np.int64)
        self.starts: NDArray[np.int64] = np.cumsum(self.lengths) - self.lengths
        # A list column is one flat array a chunk, beside the offsets of its rows; nothing is copied.
        chunks = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in table.column("input_ids").chunks]
        self._chunks: list[NDArray[np.int32]] = [chunk for chunk in chunks if len(chunk)]
        self._begins = np.cumsum([0, *map(len, self._chunks)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def take(self, start: int, count: int) -> NDArray[np.int32]:
        """Return `count` tokens from position `start` on; fewer at the end."""
        end = min(start + count, len(self))
        first = int(np.searchsorted(self._begins, start, side="right")) - 1
        parts = []
        while start < end:
            begin = int(self._begins[first])
            part = self._chunks[first][start - begin : end - begin]
            parts.append(part)
            start += len(part)
            first += 1
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def row_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each position."""
        rows: NDArray[np.int64] = np.searchsorted(self.starts, positions, side="right") - 1
        return rows


class PackedWindows(Examples):
    """Windows of `length` targets: `length` + 1 tokens, the last of which begins the next window.

    In training each epoch shifts the windows by a number drawn from seed and epoch, so that a token is
    predicted from varying contexts; tokens that do not fill a window at either end are left out. Elsewhere
    every token but the first is a target once, and the last window may be shorter.

    Args:
        table: A split, documents in order, with `id`, `source`, `input_ids` and `length`.
        length: Targets of a window.
        shift: Position of the first window.
        count: Number of windows; None takes all.
        best_fit: Whether training reads `BestFitRows` instead.
    """

    def __init__(
        self, table: pa.Table, length: int, *, shift: int = 0, count: int | None = None, best_fit: bool = False
    ) -> None:
        self._table = table
        self._stream = TokenStream(table)
        self._length = length
        self._shift = shift
        self._best_fit = best_fit
        targets = max(0, len(self._stream) - 1 - shift)
        windows = -(-targets // length) if count is None else count
        self.lengths: NDArray[np.int64] = np.full(windows, length, np.int64)
        if count is None and windows and targets % length:
            self.lengths[-1] = targets % length

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """Return `input_ids` of each window, and `document_ids`: the row of each token."""
        starts = [self._shift + row * self._length for row in rows]
        spans = [(start, int(self.lengths[row]) + 1) for start, row in zip(starts, rows, strict=True)]
        windows = [self._stream.take(start, count) for start, count in spans]
        documents = [self._stream.row_of(np.arange(start, start + count)) for start, count in spans]
        return {"input_ids": windows, "document_ids": documents}

    def in_epoch(self, epoch: int, seed: int) -> Examples:
        """Return whole windows from the epoch's first position on, or the rows of best fit."""
        if self._best_fit:
            return self._rows
        slack = max(0, len(self._stream) - 1)
        shift = int(np.random.default_rng((seed, epoch)).integers(min(self._length, slack + 1)))
        # The number that fits at the largest shift, so that every epoch has the same number.
        count = max(0, slack - (self._length - 1)) // self._length
        return PackedWindows(self._table, self._length, shift=shift, count=count) if count else self

    @cached_property
    def _rows(self) -> BestFitRows:
        return BestFitRows(self._table, self._length)

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Return `input_ids` and `document_ids` of all windows."""
        return self.__getitems__(list(range(len(self))))

    def frame(self) -> pd.DataFrame:
        """Return `id` (first document and position in it), `source`, `input_ids` and `length` of each window."""
        import pandas as pd

        starts = self._starts()
        rows = self._stream.row_of(starts)
        names = self._table.column("id").take(rows).to_pylist()
        positions = (starts - self._stream.starts[rows]).tolist()
        return pd.DataFrame(
            {
                "id": [f"{name}@{position}" for name, position in zip(names, positions, strict=True)],
                "source": self._table.column("source").take(rows).to_pylist(),
                "input_ids": self.columns()["input_ids"],
                "length": self.lengths,
            }
        )

    def _starts(self) -> NDArray[np.int64]:
        """Return the position of each window's first token."""
        starts: NDArray[np.int64] = self._shift + np.arange(len(self)) * self._length
        return starts


class BestFitRows(PackedWindows):
    """Rows of whole documents, at most `length` tokens together (Ding et al. 2024, "Fewer Truncations").

    Only documents of more than `length` tokens are cut, into pieces of `length` and a rest. Every token of the split
    is a target once. The token before a row's first one, the end of the document before it or the same document's
    token, is only read. The rows are the same in every epoch. Memory: some numbers a document.
    """

    def __init__(self, table: pa.Table, length: int) -> None:
        self._table = table
        self._stream = TokenStream(table)
        counts = -(-self._stream.lengths // length)
        ends = np.repeat(self._stream.starts + self._stream.lengths, counts)
        nth = np.arange(len(ends)) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.repeat(self._stream.starts, counts) + nth * length
        sizes = np.minimum(ends - begins, length)
        rows = best_fit(sizes, length)
        order = np.argsort(rows, kind="stable")
        self._begins, self._sizes = begins[order], sizes[order]
        self._first: NDArray[np.int64] = np.cumsum([0, *np.bincount(rows)])
        self.lengths = np.bincount(rows, weights=sizes).astype(np.int64)

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """Return `input_ids` of each row, one more than its targets, and `document_ids`."""
        windows, documents = [], []
        for row in rows:
            pieces = slice(self._first[row], self._first[row + 1])
            begins, sizes = self._begins[pieces], self._sizes[pieces].copy()
            before = self._stream.take((int(begins[0]) - 1) % len(self._stream), 1)
            parts = [self._stream.take(int(begin), int(size)) for begin, size in zip(begins, sizes, strict=True)]
            windows.append(np.concatenate([before, *parts]))
            sizes[0] += 1  # the token before the row belongs to the row's first document
            documents.append(np.repeat(self._stream.row_of(begins), sizes))
        return {"input_ids": windows, "document_ids": documents}

    def in_epoch(self, epoch: int, seed: int) -> Examples:
        """Return these rows."""
        return self

    def _starts(self) -> NDArray[np.int64]:
        return self._begins[self._first[:-1]]


def best_fit(sizes: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Return the row of each piece, by best-fit decreasing: the largest first, each into the fullest row with room.

    The rows with a given room are a list, and an integer has a bit for each room that some row has. So the time grows
    with the number of pieces, and not with its square. Pieces of equal size are placed together.

    Args:
        sizes: From 1 to `capacity`, shape (pieces,).
        capacity: Tokens of a row.
    """
    rows = np.empty(len(sizes), np.int64)
    count = 0
    for start in range(0, len(sizes), _AT_ONCE):
        block = sizes[start : start + _AT_ONCE]
        of_pieces, added = _best_fit_decreasing(block, capacity)
        rows[start : start + len(block)] = of_pieces + count
        count += added
    return rows


def _best_fit_decreasing(sizes: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Return the row of each piece, and the number of rows."""
    order = np.argsort(-sizes, kind="stable")
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = count = 0
    taken: list[int] = []
    pieces: list[int] = []
    values, numbers = np.unique(sizes, return_counts=True)
    for size, number in zip(values[::-1].tolist(), numbers[::-1].tolist(), strict=True):
        left = number
        while left:
            fitting = rooms >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1  # the lowest bit: the least room
                row = by_room[room].pop()
                rooms ^= 0 if by_room[room] else 1 << room
            else:
                room, row, count = capacity, count, count + 1
            several = min(room // size, left)  # the row stays the fullest with room until none fits
            taken.append(row)
            pieces.append(several)
            left -= several
            if rest := room - several * size:
                by_room[rest].append(row)
                rooms |= 1 << rest
    rows = np.empty(len(sizes), np.int64)
    rows[order] = np.repeat(taken, pieces)
    return rows, count


def packing_counts(table: pa.Table, length: int) -> dict[str, Any]:
    """Return rows, cut documents and the share of tokens that are no padding, for both ways to pack a split."""
    stream = TokenStream(table)
    windows = -(-max(0, len(stream) - 1) // length)
    # Of the windows that predict a document's first and last token
    first, last = (np.maximum(each - 1, 0) // length for each in (stream.starts, stream.starts + stream.lengths - 1))
    rows = len(BestFitRows(table, length))
    found = {
        "concatenate": (windows, int((first != last).sum()), len(stream) - 1),
        "best_fit": (rows, int((stream.lengths > length).sum()), len(stream)),
    }
    ways = {
        name: {"rows": rows, "cut": cut, "filled": round(targets / max(1, rows * length), 6)}
        for name, (rows, cut, targets) in found.items()
    }
    return {"documents": len(stream.starts), "length": length, **ways}
