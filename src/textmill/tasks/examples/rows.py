"""What a network is shown of a prepared split: its rows as they are, or whatever a task makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray


class Examples(Protocol):
    """Examples by number, read a batch at a time; what they are made of lies on disk.

    Attributes:
        lengths: Tokens of each, shape (n,).
    """

    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        """How many there are."""

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """Encoded columns of some examples, for `Task.collate`; `DataLoader` asks for a batch by this."""

    def in_epoch(self, epoch: int, seed: int) -> Examples:
        """As training sees them in an epoch: as many in every one, of the same lengths."""

    def columns(self) -> Mapping[str, Sequence[Any]]:
        """The encoded columns of all."""

    def frame(self) -> pd.DataFrame:
        """A row an example, with `id`, `length` and what `Task.predictions` needs."""


class EncodedRows:
    """Each row of a memory-mapped table is an example.

    Args:
        table: A split.
        columns: Names of the encoded columns; they go to `Task.collate`.
        sequences: Those of them that hold token ids, which `frame` leaves out.
    """

    def __init__(self, table: pa.Table, columns: Sequence[str], sequences: Sequence[str]) -> None:
        self.table = table
        self.encoded = table.select(list(columns))
        self._sequences = list(sequences)
        self.lengths: NDArray[np.int64] = table.column("length").to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: int) -> Mapping[str, Sequence[Any]]:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> Mapping[str, Sequence[Any]]:
        """See `Examples`."""
        columns: dict[str, list[Any]] = self.encoded.take(rows).to_pydict()
        return columns

    def in_epoch(self, epoch: int, seed: int) -> EncodedRows:
        """See `Examples`."""
        return self

    def columns(self) -> ColumnView:
        """See `Examples`."""
        return ColumnView(self.encoded)

    def frame(self) -> pd.DataFrame:
        """All columns but the token ids."""
        found: pd.DataFrame = self.table.drop(self._sequences).to_pandas()
        return found


class ColumnView(Mapping[str, Sequence[Any]]):
    """A table's columns as Python lists, each made when first asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._made: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._made:
            self._made[name] = self._table.column(name).to_pylist()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)
