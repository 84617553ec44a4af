"""The examples of a prepared split: its rows, or what a task cuts from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray


class Examples(Protocol):
    """Examples by number, read from disk a batch at a time.

    Attributes:
        lengths: Tokens of each example, shape (n,).
    """

    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """Return encoded columns of some examples for `Task.collate`; `DataLoader` fetches a batch by this."""

    def in_epoch(self, epoch: int, seed: int) -> Examples:
        """Return the training examples of an epoch; number and lengths are the same in every epoch."""
        return self

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Return the encoded columns of all examples."""

    def frame(self) -> pd.DataFrame:
        """Return a row an example, with `id`, `length` and what `Evaluator.predictions` needs."""


class EncodedRows(Examples):
    """Examples that are the rows of a memory-mapped table.

    Args:
        table: A split.
        columns: Names of the encoded columns; they go to `Task.collate`.
        sequences: Those columns that hold token ids; `frame` omits them.
    """

    def __init__(self, table: pa.Table, columns: Sequence[str], sequences: Sequence[str]) -> None:
        self.table = table
        self.encoded = table.select(list(columns))
        self._sequences = list(sequences)
        self.lengths: NDArray[np.int64] = table.column("length").to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """See `Examples`."""
        columns: dict[str, list[Any]] = self.encoded.take(rows).to_pydict()
        return columns

    def columns(self) -> ColumnView:
        """See `Examples`."""
        return ColumnView(self.encoded)

    def frame(self) -> pd.DataFrame:
        """Return all columns but the token ids."""
        frame: pd.DataFrame = self.table.drop(self._sequences).to_pandas()
        return frame


class ColumnView(Mapping[str, Sequence[Any]]):
    """A table's columns as Python lists, each converted at its first use."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._lists: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._lists:
            self._lists[name] = self._table.column(name).to_pylist()
        return self._lists[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)
