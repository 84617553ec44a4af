"""Rows longer than a network's input, cut into several overlapping windows each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.tasks.examples.rows import ColumnView, Examples

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

WINDOWS = "window_lengths"
"""Encoded column with the number of tokens of each window of a row; `input_ids` holds the windows in order."""


def cut(values: Sequence[Any], lengths: Sequence[int]) -> Iterator[Sequence[Any]]:
    """Yield consecutive parts of `lengths`."""
    start = 0
    for length in lengths:
        yield values[start : start + length]
        start += length


class SlidingWindows(Examples):
    """Examples that are the windows of a memory-mapped table's rows, row after row.

    Args:
        table: A split with the column `WINDOWS`.
        of_window: Encoded columns with a value a window.
        of_token: Encoded columns with a value a token, besides `input_ids`; all others have a value a row.
    """

    def __init__(self, table: pa.Table, of_window: Sequence[str] = (), of_token: Sequence[str] = ()) -> None:
        self._table = table
        self._of_window = [name for name in of_window if name in table.column_names]
        self._of_token = ["input_ids", *(name for name in of_token if name in table.column_names)]
        of_rows: list[list[int]] = table.column(WINDOWS).to_pylist()
        counts = [len(lengths) for lengths in of_rows]
        self.lengths: NDArray[np.int64] = np.array([length for row in of_rows for length in row], np.int64)
        self._rows: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)
        self._first: NDArray[np.int64] = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """Return `input_ids` and the window and token columns of some windows."""
        owners = self._rows[rows]
        taken = self._table.select([*self._of_token, *self._of_window]).take(owners)
        columns: dict[str, list[Any]] = {name: [] for name in taken.column_names}
        for position, (window, owner) in enumerate(zip(rows, owners.tolist(), strict=True)):
            first = int(self._first[owner])
            start = int(self.lengths[first:window].sum())
            for name in self._of_token:
                values = taken.column(name)[position].values.slice(start, int(self.lengths[window]))
                columns[name].append(values.to_numpy())
            for name in self._of_window:
                columns[name].append(taken.column(name)[position].values[window - first].as_py())
        return columns

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Return the token and window columns of all windows, and the other columns with a value a row."""
        return _Columns(self._table, self._of_window, self._of_token)

    def frame(self) -> pd.DataFrame:
        """Return all columns but the token ids, one row a row of the table."""
        frame: pd.DataFrame = self._table.drop(["input_ids"]).to_pandas()
        return frame


class _Columns(ColumnView):
    def __init__(self, table: pa.Table, of_window: Sequence[str], of_token: Sequence[str]) -> None:
        super().__init__(table)
        self._of_window = of_window
        self._of_token = of_token

    def __getitem__(self, name: str) -> Sequence[Any]:
        values = super().__getitem__(name)
        if name in self._of_token:
            rows = zip(values, super().__getitem__(WINDOWS), strict=True)
            return [part for row, lengths in rows for part in cut(row, lengths)]
        return [value for row in values for value in row] if name in self._of_window else values
