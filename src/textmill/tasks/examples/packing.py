"""Documents joined and cut into windows of equal length, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.tasks.examples.rows import Examples

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class TokenStream:
    """The token ids of all rows in one sequence, read from the memory-mapped shards.

    Args:
        table: A table with `input_ids` and `length`.

    Attributes:
        starts: Position of each row's first token, shape (rows,).
    """

    def __init__(self, table: pa.Table) -> None:
        lengths = table.column("length").to_numpy().astype(np.int64)
        self.starts: NDArray[np.int64] = np.cumsum(lengths) - lengths
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
    """

    def __init__(self, table: pa.Table, length: int, *, shift: int = 0, count: int | None = None) -> None:
        self._table = table
        self._stream = TokenStream(table)
        self._length = length
        self._shift = shift
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
        """Return whole windows from the epoch's first position on."""
        slack = max(0, len(self._stream) - 1)
        shift = int(np.random.default_rng((seed, epoch)).integers(min(self._length, slack + 1)))
        # The number that fits at the largest shift, so that every epoch has the same number.
        count = max(0, slack - (self._length - 1)) // self._length
        return PackedWindows(self._table, self._length, shift=shift, count=count) if count else self

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Return `input_ids` and `document_ids` of all windows."""
        return self.__getitems__(list(range(len(self))))

    def frame(self) -> pd.DataFrame:
        """Return `id` (first document and position in it), `source`, `input_ids` and `length` of each window."""
        import pandas as pd

        starts = self._shift + np.arange(len(self)) * self._length
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
