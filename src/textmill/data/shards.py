"""Write and open splits as memory-mapped Arrow IPC files, so that reading takes no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pyarrow as pa

from textmill.errors import UserError

SUFFIX = ".arrow"


class ShardWriter:
    """Write tables, one after the other, into `FOLDER/00000.arrow`, `00001.arrow`, ...

    The files are uncompressed: only then can they be used directly from the page cache. A split
    without rows becomes one empty file with the schema.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_shard: int) -> None:
        self.folder = folder
        self.schema = schema
        self.rows = 0
        self._rows_per_shard = rows_per_shard
        self._shards = 0
        self._room = 0
        self._writer: pa.RecordBatchFileWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, table: pa.Table) -> None:
        """Append the rows of `table`, whose columns are those of the schema, in its order."""
        done = 0
        while done < table.num_rows:
            writer = self._writer if self._writer is not None and self._room else self._next()
            part = table.slice(done, self._room)
            writer.write_table(part.combine_chunks())
            self._room -= part.num_rows
            done += part.num_rows
        self.rows += table.num_rows

    def close(self) -> None:
        """Finish the last file."""
        if self._shards == 0:
            self._next()
        self._end()

    def _next(self) -> pa.RecordBatchFileWriter:
        self._end()
        self._writer = pa.ipc.new_file(str(self.folder / f"{self._shards:05d}{SUFFIX}"), self.schema)
        self._shards += 1
        self._room = self._rows_per_shard
        return self._writer

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
        else:
            self._end()


def open_split(folder: Path) -> pa.Table:
    """Open a split as one table over its memory-mapped shards.

    Raises:
        UserError: `folder` has no shards, or one is damaged.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise UserError("no shards here", where=str(folder), fix="Run `dvc repro prepare`")
    tables = []
    for path in paths:
        try:
            tables.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
        except pa.ArrowInvalid as error:
            fix = "Run `dvc repro --force prepare`"
            raise UserError(f"damaged shard ({error})", where=str(path), fix=fix) from error
    return pa.concat_tables(tables)
