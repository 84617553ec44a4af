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
EMPTY = "(empty)"
"""Name of the slice of rows without a value in a column."""


@dataclass(frozen=True)
class Slice:
    """Rows of a split with a common property: the column, the slice's name, the row numbers."""

    column: str
    name: str
    rows: NDArray[np.intp]


def cut_slices(frame: pd.DataFrame, columns: Sequence[str], min_rows: int) -> list[Slice]:
    """Return quartiles of `length` (tokens) and one slice for each value of each column, no value included.

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


def pool_small(parts: Sequence[Slice], min_rows: int, total: int) -> tuple[list[Slice], list[Slice]]:
    """Return the slices to test, and those that remain too small.

    Slices with fewer than `min_rows` rows are put together by column. The pool is a slice if it has
    `min_rows` rows and is not the whole split of `total` rows.
    """
    tested = [part for part in parts if len(part.rows) >= min_rows]
    untested: list[Slice] = []
    for column in dict.fromkeys(part.column for part in parts):
        small = [part for part in parts if part.column == column and len(part.rows) < min_rows]
        rows = np.concatenate([part.rows for part in small]) if small else np.array([], np.intp)
        if len(small) > 1 and min_rows <= len(rows) < total:
            tested.append(Slice(column, f"({len(small)} small ones together)", np.sort(rows)))
        else:
            untested += small
    return tested, untested


def _quartiles(lengths: NDArray[np.int32]) -> Iterator[Slice]:
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="inverted_cdf"))
    quarter = np.searchsorted(edges, lengths, side="left")
    for number in range(len(edges) + 1):
        rows = np.flatnonzero(quarter == number)
        if len(rows):
            low, high = lengths[rows].min(), lengths[rows].max()
            yield Slice(LENGTH, f"{low} tokens" if low == high else f"{low} to {high} tokens", rows)


def value_names(frame: pd.DataFrame, column: str) -> pd.Series[str]:
    """Return the name of each row's slice by a column; rows without a value share `(empty)`."""
    names = frame[column].astype(object).where(frame[column].notna(), "").map(lambda value: str(value).strip())
    return names.where(names != "", EMPTY)


def _values(frame: pd.DataFrame, column: str) -> Iterator[Slice]:
    for name, rows in sorted(frame.groupby(value_names(frame, column).to_numpy()).indices.items()):
        yield Slice(column, str(name), np.asarray(rows, np.intp))
