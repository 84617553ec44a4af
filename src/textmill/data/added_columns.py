"""Add columns that the pretrained model computes to the prepared splits."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pyarrow as pa

from textmill.data.encoding import as_array
from textmill.data.prepared import SPLITS
from textmill.data.shards import SUFFIX, ShardWriter
from textmill.tasks.abilities import AddsColumns
from textmill.tasks.base import State

log = logging.getLogger("textmill")


def add_columns(task: AddsColumns, folder: Path, pretrained: Path, state: State, accelerator: str) -> None:
    """Rewrite the shards of each split in `folder` with the task's further columns, one shard in memory at a time."""
    started, rows = time.perf_counter(), 0
    columns_of = task.column_adder(pretrained, state, accelerator)
    for split in SPLITS:
        for path in sorted((folder / split).glob(f"*{SUFFIX}")):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            for name, values in columns_of(table.to_pydict()).items():
                table = table.append_column(name, as_array(name, values))
            with ShardWriter(folder / "rewritten", table.schema, max(1, table.num_rows)) as writer:
                writer.write(table)
            (folder / "rewritten" / f"00000{SUFFIX}").replace(path)
            rows += table.num_rows
    (folder / "rewritten").rmdir()
    log.info("prepare: the pretrained model has read %d rows in %.0f s", rows, time.perf_counter() - started)
