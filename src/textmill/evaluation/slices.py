"""Cut a split into slices: by length and by the configured columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from textmill.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

LENGTH = "length"


@dataclass(frozen=True)
class Slice:
    """Rows of a split with a common property: the column, the slice's name, the row numbers."""

    column: str
    name: str
    rows: NDArray[np.intp]


def cut_slices(frame: pd.DataFrame, columns: Sequence[str], min_rows: int) -> list[Slice]:
    """Return quartiles of `length` (tokens) and one slice for each value of each column.

    Slices with fewer than `min_rows` rows and slices with all rows are dropped.

    Raises:
        UserError: The frame lacks a column.
    """
    for column in columns:
        if column not in frame:
            raise UserError(
                f"the test split has no column {column!r}",
                where="evaluate.slice_columns",
                fix=f"Choose among {', '.join(map(str, frame.columns))}",
            )
    parts = [*_quartiles(frame[LENGTH].to_numpy()), *(part for column in columns for part in _values(frame, column))]
    return [part for part in parts if max(2, min_rows) <= len(part.rows) < len(frame)]


def _quartiles(lengths: NDArray[np.int32]) -> Iterator[Slice]:
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="inverted_cdf"))
    quarter = np.searchsorted(edges, lengths, side="left")
    for number in range(len(edges) + 1):
        rows = np.flatnonzero(quarter == number)
        if len(rows):
            low, high = lengths[rows].min(), lengths[rows].max()
            yield Slice(LENGTH, f"{low} tokens" if low == high else f"{low} to {high} tokens", rows)


def _values(frame: pd.DataFrame, column: str) -> Iterator[Slice]:
    for value, rows in sorted(frame.groupby(column, observed=True).indices.items(), key=lambda item: str(item[0])):
        yield Slice(column, str(value), np.asarray(rows, np.intp))
