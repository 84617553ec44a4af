"""Keep clean rows on disk between the two passes of `prepare`.

Values that duplicates and splits need of all rows at once are kept as columns of numbers, one file
each, so that memory does not grow with the texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FILE = "_file"
ROW = "_row"


class Staging:
    """Ordered rows in Arrow files of one chunk each, and columns of 64-bit numbers in files beside them.

    The chunks have the text `columns`, `FILE` (index of the file) and `ROW` (line).
    """

    def __init__(self, folder: Path, columns: Sequence[str], numbers: Sequence[str]) -> None:
        self.rows = 0
        self.folder = folder
        self.schema = pa.schema([*((name, pa.string()) for name in columns), (FILE, pa.int32()), (ROW, pa.int64())])
        self._offsets = [0]
        self._stack = ExitStack()
        self._numbers = {name: self._stack.enter_context((folder / f"{name}.u64").open("wb")) for name in numbers}

    def append(self, table: pa.Table, numbers: Mapping[str, NDArray[np.uint64]]) -> None:
        """Append a chunk of rows, a table of `schema`, with one value for each row and column of numbers."""
        if not table.num_rows:
            return
        with pa.ipc.new_file(str(self._path(len(self._offsets) - 1)), self.schema) as writer:
            writer.write_table(table)
        for name, file in self._numbers.items():
            assert len(numbers[name]) == table.num_rows, name
            file.write(numbers[name].astype(np.uint64, copy=False).tobytes())
        self.rows += table.num_rows
        self._offsets.append(self.rows)

    def finish(self) -> None:
        """Close the columns of numbers; no rows can be appended afterwards."""
        self._stack.close()

    def numbers(self, name: str) -> NDArray[np.uint64]:
        """Return a column of numbers, shape (rows,); the file is mapped, so that only the pages in use take memory."""
        if not self.rows:
            return np.zeros(0, np.uint64)
        return np.memmap(self.folder / f"{name}.u64", np.uint64, "r").view(np.ndarray)

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """Yield every chunk with the position of its first row; chunks are read into memory, not mapped."""
        for index, start in enumerate(self._offsets[:-1]):
            with pa.OSFile(str(self._path(index))) as file:
                table = pa.ipc.open_file(file).read_all()
            yield start, table if columns is None else table.select(list(columns))

    def take(self, positions: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Return the rows at ascending `positions`; only the pages that contain them are read."""
        offsets = np.asarray(self._offsets)
        chunk_of = np.searchsorted(offsets, positions, side="right") - 1
        parts = []
        for index in np.unique(chunk_of):
            with pa.memory_map(str(self._path(index))) as file:
                chunk = pa.ipc.open_file(file).read_all().select(list(columns))
                parts.append(chunk.take(pa.array(positions[chunk_of == index] - offsets[index])))
        return pa.concat_tables(parts)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.arrow"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
