"""Second pass of `prepare`: fit the task's state, tokenise, write the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from textmill.config.sections.prepare import PrepareConfig
from textmill.data.corrections import with_labels
from textmill.data.first_pass import FirstPassResult
from textmill.data.parallel import Engine
from textmill.data.prepared import SPLITS
from textmill.data.rejected_rows_file import RejectedRowsFile
from textmill.data.selection import DROPPED, Selection
from textmill.data.shards import ShardWriter
from textmill.data.staging import FILE, ROW, Staging
from textmill.data.word_table import with_word_table
from textmill.data.words import word_splitter
from textmill.errors import UserError
from textmill.text.rejected_rows import RejectedRow, excerpt

if TYPE_CHECKING:
    import pandas as pd

    from textmill.tasks.base import State, Task


_Part = tuple[pa.Table, NDArray[np.bool_], NDArray[np.uint8], NDArray[np.uint8]]
"""Rows of a chunk, whether each repeats an id, the index of the texts that it overlaps with, and its split."""


class Teacher(Protocol):
    """A trained model whose outputs a student learns from; the class that `prepare.teacher` names."""

    def open(self, folder: Path, labels: Sequence[str]) -> None:
        """Choose the exported model in `folder`; raise UserError if its labels are not `labels`."""

    def logits(self, frame: pd.DataFrame) -> list[list[float]]:
        """Return the logits of each label, in the order of `labels`, for clean rows with the text columns."""


@dataclass
class SplitCounts:
    """Counts of one split: `classes` by value of the task's `stratify_column`, `lengths` by tokens (the index).

    `sources` has the rows, characters and tokens of each source, if sources are mixed.
    """

    rows: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    characters: int = 0
    sources: dict[str, Counter[str]] = field(default_factory=dict)


def learn_state(task: Task, staging: Staging, split: NDArray[np.uint8]) -> State:
    """Fit the task's state to the training split, chunk by chunk."""
    columns = [*task.text_columns, *task.target_columns]
    return task.fit(chunk.to_pandas() for chunk in _training_chunks(staging, columns, split))


def training_texts(task: Task, staging: Staging, split: NDArray[np.uint8]) -> Iterator[str]:
    """Yield all texts of the training split, text targets included."""
    columns = (*task.text_columns, *task.text_target_columns)
    for chunk in _training_chunks(staging, columns, split):
        for name in columns:
            yield from chunk.column(name).to_pylist()


def _training_chunks(staging: Staging, columns: Sequence[str], split: NDArray[np.uint8]) -> Iterator[pa.Table]:
    for start, chunk in staging.chunks(columns):
        mask = split[start : start + chunk.num_rows] == SPLITS.index("train")
        yield chunk.filter(pa.array(mask))


class SplitEncoder:
    """Write the splits: the staged columns, `words`, and the task's encoded columns.

    The tokenizer is a `tokenizers.Tokenizer` without padding or truncation. The column `teacher_logits` has what
    the teacher, if any, answers.
    """

    def __init__(
        self, config: PrepareConfig, task: Task, state: State, tokenizer: Any, teacher: Teacher | None = None
    ) -> None:
        self._config = config
        self._task = task
        self._state = state
        self._tokenizer = with_word_table(tokenizer, chunks=True)
        self._teacher = teacher
        self._words = word_splitter(config.words)

    def run(
        self,
        staging: Staging,
        first_pass: FirstPassResult,
        selection: Selection,
        rejected: RejectedRowsFile,
        folder: Path,
        engine: Engine,
        corrected: Mapping[int, str] | None = None,
    ) -> dict[str, SplitCounts]:
        """Write `folder/SPLIT/` for every split; reject rows that the fitted task refuses.

        `engine` encodes the chunks; they are written in their order. `corrected` has the right labels of rows by
        their position.

        Raises:
            UserError: A split has no rows left.
        """
        counts = {name: SplitCounts() for name in SPLITS}
        shown = self._task.text_columns[0]
        holders = [f"a row of the split {name!r}" for name in SPLITS]
        holders += [f"the held-out texts {held_out.name!r}" for held_out in self._config.decontaminate]
        holders.append("the rows that the version to start from has seen")

        files = first_pass.files

        def encode(part: _Part) -> tuple[pa.Table, NDArray[np.uint8], list[RejectedRow]]:
            chunk, repeated, overlapping, split = part
            problems = [
                *_repeated(chunk, repeated, files, shown),
                *_overlapping(chunk, overlapping, files, shown, holders),
            ]
            kept = split < len(SPLITS)
            table, good = self._encoded(chunk.filter(pa.array(kept)), files, problems)
            return table, split[kept][good], problems

        with ExitStack() as stack:
            writers: dict[str, ShardWriter] = {}
            for table, split, problems in engine.map(encode, _parts(staging, selection, corrected or {}), "encoded"):
                rejected.add(problems)
                if not writers:
                    for name in SPLITS:
                        writer = ShardWriter(folder / name, table.schema, self._config.rows_per_shard)
                        writers[name] = stack.enter_context(writer)
                for index, name in enumerate(SPLITS):
                    part = table.filter(pa.array(split == index))
                    writers[name].write(part)
                    self._count(counts[name], part)
        for name, split_counts in counts.items():
            if not split_counts.rows:
                raise UserError(f"every row of the split {name!r} was rejected", fix=f"First: {rejected.examples[0]}")
        return counts

    def _encoded(
        self, chunk: pa.Table, files: list[str], rejected: list[RejectedRow]
    ) -> tuple[pa.Table, NDArray[np.bool_]]:
        """Return the usable rows with the encoded columns, and the mask of these rows; add the others to `rejected`."""
        task = self._task
        optional = [name for name in task.optional_columns if name in chunk.schema.names]
        frame = chunk.select([*task.text_columns, *task.target_columns, *optional]).to_pandas()
        good = np.ones(len(frame), bool)

        def reject(rows: list[RejectedRow]) -> None:
            for row in rows:
                good[row.row] = False
                file = files[chunk.column(FILE)[row.row].as_py()]
                shown = excerpt(frame[task.text_columns[0]].iloc[row.row])
                rejected.append(RejectedRow(chunk.column(ROW)[row.row].as_py(), row.column, row.reason, file, shown))

        reject(task.check(frame, self._state) if len(frame) else [])
        sound = np.flatnonzero(good)
        encoded = task.encode(
            frame.iloc[sound].reset_index(drop=True), self._tokenizer, self._state, self._config.max_length
        )
        reject([replace(row, row=int(sound[row.row])) for row in task.check_encoded(encoded)])
        if not good[sound].all():
            kept = np.flatnonzero(good[sound])
            encoded = {
                name: values.take(pa.array(kept)) if isinstance(values, pa.Array) else [values[i] for i in kept]
                for name, values in encoded.items()
            }
        if not good.all():
            frame, chunk = frame[good].reset_index(drop=True), chunk.filter(pa.array(good))
        texts = [" ".join(values) for values in zip(*(frame[name].tolist() for name in task.text_columns), strict=True)]
        columns = {name: chunk.column(name) for name in chunk.schema.names if name not in (FILE, ROW, "source")}
        columns["words"] = pa.array(self._words(texts), pa.string())
        columns["source"] = chunk.column("source")
        if self._teacher is not None:
            encoded["teacher_logits"] = self._teacher.logits(frame) if len(frame) else []
        return pa.table({**columns, **{name: as_array(name, values) for name, values in encoded.items()}}), good

    def _count(self, counts: SplitCounts, part: pa.Table) -> None:
        counts.rows += part.num_rows
        if self._task.stratify_column is not None:
            classes = part.column(self._task.stratify_column).value_counts().to_pylist()
            counts.classes.update({entry["values"]: entry["counts"] for entry in classes})
        lengths = np.bincount(part.column("length").to_numpy(), minlength=len(counts.lengths))
        lengths[: len(counts.lengths)] += counts.lengths
        counts.lengths = lengths
        for name in self._task.text_columns:
            counts.characters += pc.sum(pc.utf8_length(part.column(name))).as_py() or 0
        if self._config.mixture is not None and part.num_rows:
            columns = (part.column(name) for name in self._task.text_columns)
            part = part.append_column("characters", reduce(pc.add, map(pc.utf8_length, columns)))
            sums = part.group_by("source").aggregate([("source", "count"), ("characters", "sum"), ("length", "sum")])
            for row in sums.to_pylist():
                of_source = counts.sources.setdefault(row["source"], Counter())
                of_source["rows"] += row["source_count"]
                of_source["characters"] += row["characters_sum"]
                of_source["tokens"] += row["length_sum"]


def _parts(staging: Staging, selection: Selection, corrected: Mapping[int, str]) -> Iterator[_Part]:
    for start, chunk in staging.chunks():
        span = slice(start, start + chunk.num_rows)
        chunk = with_labels(chunk, start, corrected)
        yield chunk, selection.repeated_ids[span], selection.overlapping[span], selection.split[span]


def as_array(name: str, values: Sequence[Any]) -> pa.Array:
    """Return an encoded column as an array: token ids and lengths of 32 bits, other integers of 64."""
    if isinstance(values, pa.Array):
        return values
    first = next((value for value in values if value is not None), None)
    if isinstance(first, list):
        inner = pa.float32() if any(isinstance(item, float) for item in first) else pa.int32()
        return pa.array(values, pa.list_(inner))
    if name == "input_ids":
        return pa.array(values, pa.list_(pa.int32()))
    if name == "length":
        return pa.array(values, pa.int32())
    return pa.array(values, pa.float32() if isinstance(first, float) else pa.int64())


def _repeated(chunk: pa.Table, again: NDArray[np.bool_], files: list[str], text_column: str) -> Iterator[RejectedRow]:
    for position in np.flatnonzero(again).tolist():
        row: Mapping[str, Any] = chunk.slice(position, 1).to_pylist()[0]
        reason = f"{excerpt(row['id'])!r} is also the id of an earlier row"
        yield RejectedRow(row[ROW], "id", reason, files[row[FILE]], excerpt(row[text_column]))


def _overlapping(
    chunk: pa.Table, overlapping: NDArray[np.uint8], files: list[str], text_column: str, holders: list[str]
) -> Iterator[RejectedRow]:
    for position in np.flatnonzero(overlapping != DROPPED).tolist():
        row: Mapping[str, Any] = chunk.slice(position, 1).to_pylist()[0]
        reason = f"shares a passage with {holders[overlapping[position]]}"
        yield RejectedRow(row[ROW], text_column, reason, files[row[FILE]], excerpt(row[text_column]))
