"""First pass of `prepare`: read, map, clean and check; stage clean rows on disk, list the rejected ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.util import hash_array

from textmill.config.sections.prepare import PrepareConfig
from textmill.data.cleaning import Cleaner
from textmill.data.mapping import ColumnMap
from textmill.data.reading import RawRows, read_rows
from textmill.data.rejected_rows_file import RejectedRowsFile
from textmill.data.shingles import ShingleCounts, batches, normalise, shingle_hashes
from textmill.data.stable_splits import group_hashes, parse_time
from textmill.data.staging import FILE, ROW, Staging
from textmill.data.text import WHOLE, Part
from textmill.errors import UserError
from textmill.tasks.abilities import RealignsTargets
from textmill.text.rejected_rows import RejectedRow, excerpt

if TYPE_CHECKING:
    from textmill.tasks.base import Task

SPLIT_CODES = {"test": 0, "validation": 1, "train": 2, "all": 3}
"""Splits that a source may provide; of equal rows, the one with the lower code stays."""
_SEPARATOR = "\x1f"
_MAX_PENDING = 3
"""Chunks that wait for their shingles to be counted at most."""


@dataclass
class FirstPassResult:
    """Summary of the rows read, rejected ones included.

    `files` are named as in messages, and `splits` are those that the source provides. Without
    near-duplicate removal, `shingles` is None. `classes` maps hashes to names. `ungrouped` rows lack the value
    by which the splits keep groups together.
    """

    files: list[str] = field(default_factory=list)
    rows: int = 0
    splits: list[str] = field(default_factory=list)
    has_ids: bool = False
    shingles: ShingleCounts | None = None
    classes: dict[int, str] = field(default_factory=dict)
    ungrouped: int = 0


class FirstPass:
    """Run the first pass.

    Raises:
        UserError: A column is not mapped, or the cleaning is misconfigured.
    """

    def __init__(self, config: PrepareConfig, task: Task, rejected: RejectedRowsFile) -> None:
        self._config = config
        self._task = task
        self._rejected = rejected
        self._map = ColumnMap(config.read, [*task.text_columns, *task.target_columns])
        for key, column in (("group", config.splits.group), ("time", config.splits.time)):
            if column is not None and column not in self._map.names:
                fix = "Map it in prepare.read.columns"
                raise UserError(f"the column {column!r} is not mapped", where=f"prepare.splits.{key}", fix=fix)
        self._cleaner = Cleaner(config.cleaning)
        shingles = ShingleCounts() if config.duplicates.near else None
        self.result = FirstPassResult(has_ids="id" in self._map.names, shingles=shingles)

    @property
    def columns(self) -> list[str]:
        """Names of the staged text columns: `id`, the task's, other mapped ones, `source`."""
        own = [*self._task.text_columns, *self._task.target_columns]
        others = [name for name in self._map.names if name not in ("id", "source", *own)]
        return ["id", *own, *others, "source"]

    def staging(self, folder: Path) -> Staging:
        """Create the staging area that `run` writes to."""
        numbers = ["split", "key", "target", "stratum", *(["source_id"] if self.result.has_ids else [])]
        numbers += [self._config.splits.by] if self._config.splits.by in ("group", "time") else []
        return Staging(folder, self.columns, numbers)

    def run(self, raw: Path, staging: Staging) -> FirstPassResult:
        """Read all files of `raw` (`SPLIT/FILE`) into `staging`.

        Raises:
            UserError: A file is empty or lacks a column.
        """
        # NumPy counts shingles in a thread while Python reads the next chunk
        with ThreadPoolExecutor(1) as pool:
            pending: deque[Future[None]] = deque()
            for split, path, part in self._parts(raw):
                if split not in self.result.splits:
                    self.result.splits.append(split)
                for columns, numbers, texts in self._rows(split, path, part):
                    staging.append(columns, numbers)
                    if self.result.shingles is not None:
                        pending.append(pool.submit(self._count_shingles, texts))
                    if len(pending) > _MAX_PENDING:
                        pending.popleft().result()
            while pending:
                pending.popleft().result()
        staging.finish()
        return self.result

    def _parts(self, raw: Path) -> Iterator[tuple[str, Path, Part]]:
        """Yield the fetched files and their splits; files of `all` are cut here when splits are cut by position."""
        for split, path in _list_files(raw):
            if split != "all" or self._config.splits.by != "position":
                yield split, path, WHOLE
                continue
            shares = self._config.splits
            train = round(1 - shares.validation - shares.test, 12)
            yield "train", path, (0.0, train)
            if shares.validation:
                yield "validation", path, (train, round(1 - shares.test, 12))
            if shares.test:
                yield "test", path, (round(1 - shares.test, 12), 1.0)

    def _rows(
        self, split: str, path: Path, part: Part
    ) -> Iterator[tuple[dict[str, Any], dict[str, NDArray[np.uint64]], list[str]]]:
        """Yield the clean rows of a file, chunk by chunk: columns, numbers, normalised texts."""
        label = f"data/raw/files/{path.parent.name}/{path.name}"
        self.result.files.append(label)
        stem = path.name.partition(".")[0]
        file_column = self._config.read.file_column
        wanted = [name for name in self._map.wanted if name != file_column]
        for raw in read_rows(path, label, self._config.read, wanted, part):
            if file_column is not None:
                raw.columns[file_column] = [stem] * len(raw.lines)
            self.result.rows += len(raw.lines) + len(raw.rejected)
            self._rejected.add(raw.rejected)
            columns = self._good(raw, label)
            count = len(columns[ROW])
            if not count:
                continue
            columns["source"] = [value or stem for value in columns.get("source") or [None] * count]
            ids = columns.get("id") or [None] * count
            columns["id"] = [
                value or f"{split}/{path.name}:{row}" for value, row in zip(ids, columns[ROW], strict=True)
            ]
            columns[FILE] = [len(self.result.files) - 1] * count
            texts = [normalise(text) for text in _joined(columns, self._task.text_columns)]
            yield columns, self._numbers(columns, texts, split), texts

    def _good(self, raw: RawRows, label: str) -> dict[str, list[Any]]:
        """Return the rows that pass mapping, cleaning and the task's check; reject the others."""
        mapped, problems = self._map.apply(raw.columns)
        uncleaned = {name: mapped[name] for name in self._task.text_columns}
        for name in (*self._task.text_columns, *self._task.text_target_columns):
            mapped[name] = self._cleaned(name, mapped[name], problems)
        if isinstance(self._task, RealignsTargets):
            for position, problem in self._task.realign_targets(uncleaned, mapped).items():
                problems.setdefault(position, problem)
        if (time := self._config.splits.time) is not None:
            for position, value in enumerate(mapped[time]):
                try:
                    parse_time(value)
                except ValueError as error:
                    problems.setdefault(position, (time, str(error)))
        self._reject(label, raw.lines, mapped, problems)
        columns: dict[str, list[Any]] = _without({**mapped, ROW: raw.lines}, problems)
        names = [*self._task.text_columns, *self._task.target_columns]
        frame = pd.DataFrame({name: pd.Series(columns[name], dtype="str") for name in names})
        failed: dict[int, tuple[str, str]] = {}
        if len(frame):
            for row in self._task.check(frame, None):
                failed.setdefault(row.row, (row.column, row.reason))
        self._reject(label, columns[ROW], columns, failed)
        return _without(columns, failed)

    def _cleaned(
        self, name: str, values: Sequence[str | None], problems: dict[int, tuple[str, str]]
    ) -> list[str | None]:
        """Clean texts; add the reasons to reject a row to `problems`."""
        clean, problem = self._cleaner.clean, self._cleaner.problem
        result: list[str | None] = []
        for position, value in enumerate(values):
            if value is None:
                result.append(None)
                continue
            reason = self._cleaner.too_long(value)
            if reason is None:
                value = clean(value)
                reason = problem(value)
            if reason is not None:
                problems.setdefault(position, (name, reason))
            result.append(value)
        return result

    def _reject(
        self, label: str, lines: Sequence[int], columns: dict[str, Any], problems: dict[int, tuple[str, str]]
    ) -> None:
        shown = self._task.text_columns[0]
        self._rejected.add(
            RejectedRow(lines[position], column, reason, label, excerpt(columns[shown][position]))
            for position, (column, reason) in sorted(problems.items())
        )

    def _numbers(self, columns: dict[str, Any], texts: list[str], split: str) -> dict[str, NDArray[np.uint64]]:
        code = SPLIT_CODES[split]
        numbers = {
            "split": np.full(len(texts), code, np.uint64),
            "key": hashes(texts),
            "target": hashes(_joined(columns, self._task.target_columns)),
            "stratum": np.zeros(len(texts), np.uint64),
        }
        if (group := self._config.splits.group) is not None:
            numbers["group"] = group_hashes(hashes([v or "" for v in columns[group]]), numbers["key"], columns[group])
            self.result.ungrouped += sum(not value for value in columns[group])
        if (time := self._config.splits.time) is not None:
            numbers["time"] = np.array([parse_time(value) for value in columns[time]], np.uint64)
        if self.result.has_ids:
            numbers["source_id"] = hashes([f"{code}{_SEPARATOR}{value}" for value in columns["id"]])
        if (stratify := self._task.stratify_column) is not None:
            names = columns[stratify]
            numbers["stratum"] = hashes(names)
            new, first = np.unique(numbers["stratum"], return_index=True)
            self.result.classes.update((int(code), names[index]) for code, index in zip(new, first, strict=True))
        return numbers

    def _count_shingles(self, texts: list[str]) -> None:
        assert self.result.shingles is not None, "near-duplicates are not removed"
        for some in batches(texts):
            self.result.shingles.add(shingle_hashes(texts[some], self._config.duplicates.shingle)[0])


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


def _list_files(raw: Path) -> list[tuple[str, Path]]:
    """Return the fetched files with their splits, in a fixed order."""
    files = [(split, path) for split in SPLIT_CODES for path in sorted((raw / split).glob("*")) if path.is_file()]
    if not files:
        raise UserError("no fetched files here", where=str(raw), fix="Run `dvc repro fetch`")
    return files
