"""Clean, check and hash one chunk of rows; the same function in a thread, a process or on Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pandas.util import hash_array

from textmill.config.sections.prepare import PrepareConfig, ReadConfig
from textmill.data.cleaning import Cleaner
from textmill.data.duplicates import SIGNATURES_FROM
from textmill.data.mapping import ColumnMap
from textmill.data.masking import masker
from textmill.data.quality import Tally, quality_filter
from textmill.data.reading import RawRows
from textmill.data.shingles import Signatures, normalise_all, signatures
from textmill.data.stable_splits import check_time, group_hashes, parse_time
from textmill.data.staging import FILE, ROW
from textmill.tasks.abilities import RealignsTargets
from textmill.text.rejected_rows import RejectedRow, excerpt

if TYPE_CHECKING:
    from textmill.tasks.base import Task

SPLIT_CODES = {"test": 0, "validation": 1, "train": 2, "all": 3}
"""Splits that a source may provide; of equal rows, the one with the lower code stays."""
_NUMBERS = ("score", "value", "first_rank")
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class RawChunk:
    """Rows as read, with the split of their file, its path below the folder of the split, its label and number."""

    rows: RawRows
    split: str
    name: str
    label: str
    number: int


@dataclass
class CleanedChunk:
    """The good rows of a chunk, and what became of the others.

    Attributes:
        table: The rows to stage, or None if there are none.
        numbers: Columns of numbers, each of shape (rows,).
        signatures: Those of the texts; None where near-duplicates are not found by them.
        filtered: Rows of `rejected` that filters of quality dropped.
        classes: Hash of a class -> its name.
        sources: Hash of a source -> its name, if sources are mixed.
        ungrouped: Rows that lack the value by which the splits keep groups together.
        unified: Labels that were written otherwise, as `ColumnMap.apply` counts them.
    """

    rows: int
    table: pa.Table | None = None
    numbers: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    signatures: Signatures | None = None
    rejected: list[RejectedRow] = field(default_factory=list)
    filtered: int = 0
    quality: Tally = field(default_factory=Tally)
    masked: Counter[str] = field(default_factory=Counter)
    classes: dict[int, str] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    unified: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    ungrouped: int = 0


class ChunkCleaner:
    """Map, clean, filter and check the rows of chunks.

    Raises:
        UserError: A column is not mapped, or the cleaning is misconfigured.
    """

    def __init__(self, config: PrepareConfig, task: Task, schema: pa.Schema) -> None:
        self._config = config
        self._task = task
        self._schema = schema
        self._map = column_map(config.read, task)
        self._cleaner = Cleaner(config.cleaning)
        self._quality = quality_filter(config.quality)
        self._mask = masker(config.mask)

    def __reduce__(self) -> tuple[Any, ...]:
        # A detector of languages cannot be copied to another process: it is built there
        return type(self), (self._config, self._task, self._schema)

    def __call__(self, chunk: RawChunk) -> CleanedChunk:
        """Return the cleaned chunk."""
        raw, stem = chunk.rows, PurePosixPath(chunk.name).name.partition(".")[0]
        result = CleanedChunk(len(raw.lines) + len(raw.rejected), rejected=list(raw.rejected))
        columns = self._good(raw, chunk.label, result)
        count = len(columns[ROW])
        if not count:
            return result
        columns["source"] = [value or stem for value in columns.get("source") or [None] * count]
        ids = columns.get("id") or [None] * count
        columns["id"] = [
            value or f"{chunk.split}/{chunk.name}:{row}" for value, row in zip(ids, columns[ROW], strict=True)
        ]
        columns[FILE] = [chunk.number] * count
        texts = normalise_all(_joined(columns, self._task.text_columns))
        result.numbers = self._numbers(columns, texts, chunk.split, result)
        result.table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in self._schema})
        if uses_signatures(self._config):
            options = self._config.duplicates
            result.signatures = signatures(texts, options.shingle, options.threshold)
            result.numbers["shingles"] = result.signatures.sizes.astype(np.uint64)
            result.numbers["sketch"] = result.signatures.sketches
        return result

    def _good(self, raw: RawRows, label: str, result: CleanedChunk) -> dict[str, list[Any]]:
        """Return the rows that pass mapping, cleaning and the task's check; reject the others."""
        mapped, problems = self._map.apply(raw.columns, result.unified)
        uncleaned = {name: mapped[name] for name in self._task.text_columns}
        for name in (*self._task.text_columns, *self._task.text_target_columns):
            mapped[name] = self._cleaned(name, mapped[name], problems, result)
        dropped = self._filter(mapped, problems, result)
        if isinstance(self._task, RealignsTargets):
            for position, problem in self._task.realign_targets(uncleaned, mapped).items():
                problems.setdefault(position, problem)
        if (time := self._config.splits.time) is not None:
            for position, value in enumerate(mapped[time]):
                try:
                    check_time(value)
                except ValueError as error:
                    problems.setdefault(position, (time, str(error)))
        self._reject(label, raw.lines, mapped, problems, result)
        result.filtered += len(dropped)
        columns: dict[str, list[Any]] = _without({**mapped, ROW: raw.lines}, problems)
        names = [*self._task.text_columns, *self._task.target_columns]
        frame = pd.DataFrame({name: pd.Series(columns[name], dtype="str") for name in names})
        failed: dict[int, tuple[str, str]] = {}
        if len(frame):
            for row in self._task.check(frame, None):
                failed.setdefault(row.row, (row.column, row.reason))
        self._reject(label, columns[ROW], columns, failed, result)
        return _without(columns, failed)

    def _cleaned(
        self, name: str, values: Sequence[str | None], problems: dict[int, tuple[str, str]], chunk: CleanedChunk
    ) -> list[str | None]:
        """Clean texts; add the reasons to reject a row to `problems`."""
        clean, problem = self._cleaner.clean, self._cleaner.problem
        simple = self._cleaner.simple if self._mask is None else None
        result: list[str | None] = []
        for position, value in enumerate(values):
            if value is None or (simple is not None and simple(value)):
                result.append(value)
                continue
            reason = self._cleaner.too_long(value)
            if reason is None:
                value = clean(value)
                value = value if self._mask is None else self._mask(value, chunk.masked)
                reason = problem(value)
            if reason is not None:
                problems.setdefault(position, (name, reason))
            result.append(value)
        return result

    def _filter(
        self, mapped: dict[str, list[str | None]], problems: dict[int, tuple[str, str]], chunk: CleanedChunk
    ) -> set[int]:
        """Drop texts of low quality; add them to `problems` and return their positions."""
        dropped: set[int] = set()
        if self._quality is None:
            return dropped
        for name in self._task.text_columns:
            values = mapped[name]
            judged = [index for index, value in enumerate(values) if value is not None and index not in problems]
            texts, reasons = self._quality([values[index] or "" for index in judged], chunk.quality)
            for index, text in zip(judged, texts, strict=True):
                values[index] = text
            problems.update({judged[position]: (name, reason) for position, reason in reasons.items()})
            dropped.update(judged[position] for position in reasons)
        return dropped

    def _reject(
        self,
        label: str,
        lines: Sequence[int],
        columns: dict[str, Any],
        problems: dict[int, tuple[str, str]],
        chunk: CleanedChunk,
    ) -> None:
        shown = self._task.text_columns[0]
        chunk.rejected.extend(
            RejectedRow(lines[position], column, reason, label, excerpt(columns[shown][position]))
            for position, (column, reason) in sorted(problems.items())
        )

    def _numbers(
        self, columns: dict[str, Any], texts: list[str], split: str, chunk: CleanedChunk
    ) -> dict[str, NDArray[np.uint64]]:
        code = SPLIT_CODES[split]
        numbers = {
            "split": np.full(len(texts), code, np.uint64),
            "key": hashes(texts),
            "target": hashes(_joined(columns, self._task.target_columns)),
            "stratum": np.zeros(len(texts), np.uint64),
        }
        if (group := self._config.splits.group) is not None:
            named = hashes([value or "" for value in columns[group]])
            numbers["group"] = group_hashes(named, numbers["key"], columns[group])
            chunk.ungrouped += sum(not value for value in columns[group])
        if (time := self._config.splits.time) is not None:
            numbers["time"] = np.array([parse_time(value) for value in columns[time]], np.uint64)
        if self._config.mixture is not None:
            numbers["source"] = hashes(columns["source"])
            numbers["characters"] = np.fromiter(map(len, texts), np.uint64, len(texts))
            chunk.sources.update(zip(numbers["source"].tolist(), columns["source"], strict=True))
        if "id" in self._map.names:
            numbers["source_id"] = hashes([f"{code}{_SEPARATOR}{value}" for value in columns["id"]])
        if (stratify := self._task.stratify_column) is not None:
            names = columns[stratify]
            numbers["stratum"] = hashes(names)
            new, first = np.unique(numbers["stratum"], return_index=True)
            chunk.classes.update((int(code), names[index]) for code, index in zip(new, first, strict=True))
        return numbers


def column_map(config: ReadConfig, task: Task) -> ColumnMap:
    """Return the map from a file's columns to the task's.

    Raises:
        UserError: A column of the task is not mapped.
    """
    targets = [name for name in task.target_columns if name not in task.text_target_columns]
    labels = [name for name in targets if name in (task.stratify_column, "label", "labels")]
    texts = [*task.text_columns, *task.text_target_columns]
    numbers = [name for name in targets if name in _NUMBERS]
    return ColumnMap(config, [*task.text_columns, *task.target_columns], texts, labels, numbers)


def uses_signatures(config: PrepareConfig) -> bool:
    """Return whether near-duplicates are found by signatures."""
    options = config.duplicates
    return options.exact and options.near and options.threshold >= SIGNATURES_FROM


def hashes(values: Sequence[str]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each string."""
    hashed: NDArray[np.uint64] = hash_array(np.array(values, dtype=object), categorize=False)
    return hashed


def _joined(columns: dict[str, Any], names: Sequence[str]) -> list[str]:
    if not names:  # a task without targets
        return [""] * len(columns[ROW])
    if len(names) == 1:
        return list(columns[names[0]])
    return [_SEPARATOR.join(values) for values in zip(*(columns[name] for name in names), strict=True)]


def _without(columns: dict[str, Any], dropped: dict[int, Any]) -> dict[str, list[Any]]:
    if not dropped:
        return columns
    return {
        name: [value for position, value in enumerate(values) if position not in dropped]
        for name, values in columns.items()
    }
