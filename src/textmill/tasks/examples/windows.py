"""Rows that are longer than a network's input, shown to it as several overlapping windows each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

WINDOWS = "window_lengths"
"""Encoded column: tokens of each window of a row. `input_ids` has them one after the other."""


def cut(values: Sequence[Any], lengths: Sequence[int]) -> Iterator[Sequence[Any]]:
    """Consecutive parts of the given lengths."""
    start = 0
    for length in lengths:
        yield values[start : start + length]
        start += length


class SlidingWindows:
    """Each window of each row of a memory-mapped table is an example; windows of a row stand together.

    Args:
        table: A split, with `WINDOWS`.
        of_window: Encoded columns that hold a value for each window; the others but `input_ids`
            belong to the whole row.
    """

    def __init__(self, table: pa.Table, of_window: Sequence[str] = ()) -> None:
        self._table = table
        self._of_window = [name for name in of_window if name in table.column_names]
        of_rows: list[list[int]] = table.column(WINDOWS).to_pylist()
        counts = [len(lengths) for lengths in of_rows]
        self.lengths: NDArray[np.int64] = np.array([length for row in of_rows for length in row], np.int64)
        self._rows: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)
        self._first: NDArray[np.int64] = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, window: int) -> Mapping[str, Sequence[Any]]:
        return self.__getitems__([window])

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """`input_ids` and the columns of each window."""
        owners = self._rows[rows]
        taken = self._table.select(["input_ids", *self._of_window]).take(owners)
        found: dict[str, list[Any]] = {name: [] for name in taken.column_names}
        for position, (window, owner) in enumerate(zip(rows, owners.tolist(), strict=True)):
            first = int(self._first[owner])
            start = int(self.lengths[first:window].sum())
            ids = taken.column("input_ids")[position].values.slice(start, int(self.lengths[window]))
            found["input_ids"].append(ids.to_numpy())
            for name in self._of_window:
                found[name].append(taken.column(name)[position].values[window - first].as_py())
        return found

    def in_epoch(self, epoch: int, seed: int) -> SlidingWindows:
        """See `Examples`."""
        return self

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """`input_ids` and the columns of all windows; beside them the columns of the rows, a value a row."""
        return _Columns(self._table, self._of_window)

    def frame(self) -> pd.DataFrame:
        """All columns but the token ids, a row of the table each."""
        found: pd.DataFrame = self._table.drop(["input_ids"]).to_pandas()
        return found


class _Columns(Mapping[str, Sequence[Any]]):
    def __init__(self, table: pa.Table, of_window: Sequence[str]) -> None:
        self._table = table
        self._of_window = of_window

    def __getitem__(self, name: str) -> Sequence[Any]:
        values: list[Any] = self._table.column(name).to_pylist()
        if name == "input_ids":
            lengths = self._table.column(WINDOWS).to_pylist()
            return [part for row, of_row in zip(values, lengths, strict=True) for part in cut(row, of_row)]
        return [value for row in values for value in row] if name in self._of_window else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)
