"""Count the evaluation rows that a training split also has: equal, nearly equal, or as a passage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from textmill.config.sections.prepare import DuplicatesConfig
from textmill.data.duplicates import find_similar
from textmill.data.passages import find_shared
from textmill.data.shingles import normalise

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 10_000
_NEAR = (DuplicatesConfig().threshold, DuplicatesConfig().shingle)


def overlapping_rows(texts: Sequence[Sequence[str]], training: pa.Table) -> NDArray[np.bool_]:
    """Return a mask of the evaluation rows that the training rows also have; see `DuplicatesConfig` for limits.

    Args:
        texts: The evaluation rows, column by column.
        training: The same columns of the training split, which are read chunk by chunk.
    """

    def chunks() -> Iterator[tuple[NDArray[np.int64], list[list[str]]]]:
        start = 0
        for batch in training.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield start + np.arange(batch.num_rows), [column.to_pylist() for column in batch.columns]
            start += batch.num_rows

    rows = np.arange(len(texts[0]))
    found = find_similar(_normalised(texts), (_normalised(columns) for _, columns in chunks()), *_NEAR)
    found[find_shared(lambda: [(rows, [list(column) for column in texts])], chunks)[:, 0]] = True
    return found


def _normalised(columns: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[normalise(text) for text in column] for column in columns]
