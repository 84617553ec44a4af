"""First pass of `prepare`: read, map, clean, check; clean rows go to disk, the others to the rejects."""

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
from textmill.data.minhash import band_hashes, band_shape, normalise, signatures
from textmill.data.reading import RawRows, read_rows
from textmill.data.rejects import RejectFile
from textmill.data.staging import FILE, ROW, Staging
from textmill.data.text import WHOLE, Part
from textmill.errors import UserError
from textmill.tasks.abilities import RealignsTargets
from textmill.text.rejected_rows import RejectedRow, excerpt

if TYPE_CHECKING:
    from textmill.tasks.base import Task

SPLIT_CODES = {"test": 0, "validation": 1, "train": 2, "all": 3}
"""Of the splits that a source may bring; of two equal rows the one with the lower code stays."""
_SEPARATOR = "\x1f"
_WAITING = 3


@dataclass
class Intake:
    """What the first pass found.

    Attributes:
        files: Names of the files, as in messages.
        rows: Rows read, rejected ones among them.
        splits: Splits that the source brought.
        has_ids: Whether the rows' ids come from the data.
        bands: Bands of the MinHash signatures; 0 without near-duplicate removal.
        classes: Hash of a class -> its name.
    """

    files: list[str] = field(default_factory=list)
    rows: int = 0
    splits: list[str] = field(default_factory=list)
    has_ids: bool = False
    bands: int = 0
    classes: dict[int, str] = field(default_factory=dict)


class Intaker:
    """Runs the first pass.

    Args:
        config: The `prepare` section.
        task: Checks the rows.
        rejects: Takes the rows that are no use.

    Raises:
        UserError: A column is not mapped, or the cleaning is configured wrongly.
    """

    def __init__(self, config: PrepareConfig, task: Task, rejects: RejectFile) -> None:
        self._config = config
        self._task = task
        self._rejects = rejects
        self._map = ColumnMap(config.read, [*task.text_columns, *task.target_columns])
        if config.splits.group is not None and config.splits.group not in self._map.names:
            fix = "Map it under prepare.read.columns"
            raise UserError(f"the column {config.splits.group!r} is not mapped", where="prepare.splits.group", fix=fix)
        self._cleaner = Cleaner(config.cleaning)
        self._bands = band_shape(config.duplicates.threshold, config.duplicates.permutations)
        self.found = Intake(has_ids="id" in self._map.names, bands=self._bands[0] if config.duplicates.near else 0)

    @property
    def columns(self) -> list[str]:
        """The text columns that are staged: `id`, those of the task, other mapped ones, `source`."""
        own = [*self._task.text_columns, *self._task.target_columns]
        others = [name for name in self._map.names if name not in ("id", "source", *own)]
        return ["id", *own, *others, "source"]

    def staging(self, folder: Path) -> Staging:
        """Where `run` puts the rows."""
        numbers = ["split", "key", "target", "stratum", *(["given_id"] if self.found.has_ids else [])]
        numbers += ["group"] if self._config.splits.by == "group" else []
        return Staging(folder, self.columns, numbers + [f"band{index}" for index in range(self.found.bands)])

    def run(self, raw: Path, staging: Staging) -> Intake:
        """Read all files of `raw` (`SPLIT/FILE`) into `staging`.

        Raises:
            UserError: A file is empty or lacks a column.
        """
        # The signatures are numpy's work, done beside the next chunk's Python work
        with ThreadPoolExecutor(2) as pool:
            waiting: deque[tuple[dict[str, Any], dict[str, Any], Future[NDArray[np.uint64]] | None]] = deque()
            for split, path, part in self._parts(raw):
                if split not in self.found.splits:
                    self.found.splits.append(split)
                for columns, numbers, texts in self._rows(split, path, part):
                    waiting.append((columns, numbers, pool.submit(self._signed, texts) if self.found.bands else None))
                    if len(waiting) > _WAITING:
                        _put(staging, *waiting.popleft())
            while waiting:
                _put(staging, *waiting.popleft())
        staging.finish()
        return self.found

    def _parts(self, raw: Path) -> Iterator[tuple[str, Path, Part]]:
        """The fetched files with their splits; those of `all` are cut when splits are told by position."""
        for split, path in _files(raw):
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
        """The good rows of a file, chunk by chunk: columns, numbers, normalised texts."""
        label = f"data/raw/files/{path.parent.name}/{path.name}"
        self.found.files.append(label)
        stem = path.name.partition(".")[0]
        file_column = self._config.read.file_column
        wanted = [name for name in self._map.wanted if name != file_column]
        for raw in read_rows(path, label, self._config.read, wanted, part):
            if file_column is not None:
                raw.columns[file_column] = [stem] * len(raw.lines)
            self.found.rows += len(raw.lines) + len(raw.rejects)
            self._rejects.add(raw.rejects)
            columns = self._good(raw, label)
            count = len(columns[ROW])
            if not count:
                continue
            columns["source"] = [value or stem for value in columns.get("source") or [None] * count]
            given = columns.get("id") or [None] * count
            columns["id"] = [
                value or f"{split}/{path.name}:{row}" for value, row in zip(given, columns[ROW], strict=True)
            ]
            columns[FILE] = [len(self.found.files) - 1] * count
            texts = [normalise(text) for text in _joined(columns, self._task.text_columns)]
            yield columns, self._numbers(columns, texts, split), texts

    def _good(self, raw: RawRows, label: str) -> dict[str, list[Any]]:
        """The rows that pass mapping, cleaning and the task's check; the others are rejected."""
        mapped, problems = self._map.apply(raw.columns)
        given = {name: mapped[name] for name in self._task.text_columns}
        for name in (*self._task.text_columns, *self._task.text_target_columns):
            mapped[name] = self._cleaned(name, mapped[name], problems)
        if isinstance(self._task, RealignsTargets):
            for position, problem in self._task.realign_targets(given, mapped).items():
                problems.setdefault(position, problem)
        self._reject(label, raw.lines, mapped, problems)
        columns: dict[str, list[Any]] = _without({**mapped, ROW: raw.lines}, problems)
        frame = as_frame(columns, [*self._task.text_columns, *self._task.target_columns])
        failed: dict[int, tuple[str, str]] = {}
        if len(frame):
            for found in self._task.check(frame, None):
                failed.setdefault(found.row, (found.column, found.reason))
        self._reject(label, columns[ROW], columns, failed)
        return _without(columns, failed)

    def _cleaned(
        self, name: str, values: Sequence[str | None], problems: dict[int, tuple[str, str]]
    ) -> list[str | None]:
        """Clean texts; what is wrong with one is added to `problems`."""
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
        self._rejects.add(
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
            numbers["group"] = hashes([value or "" for value in columns[group]])
        if self.found.has_ids:
            numbers["given_id"] = hashes([f"{code}{_SEPARATOR}{value}" for value in columns["id"]])
        if (stratify := self._task.stratify_column) is not None:
            names = columns[stratify]
            numbers["stratum"] = hashes(names)
            new, first = np.unique(numbers["stratum"], return_index=True)
            self.found.classes.update((int(code), names[index]) for code, index in zip(new, first, strict=True))
        return numbers

    def _signed(self, texts: list[str]) -> NDArray[np.uint64]:
        duplicates = self._config.duplicates
        return band_hashes(signatures(texts, duplicates.shingle, duplicates.permutations), *self._bands)


def as_frame(columns: dict[str, Any], names: Sequence[str]) -> pd.DataFrame:
    """Some columns as a data frame of strings."""
    return pd.DataFrame({name: pd.Series(columns[name], dtype="str") for name in names})


def hashes(values: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash of each string."""
    array = np.empty(len(values), object)
    array[:] = values
    hashed: NDArray[np.uint64] = hash_array(array, categorize=False)
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


def _put(
    staging: Staging, columns: dict[str, Any], numbers: dict[str, Any], bands: Future[NDArray[np.uint64]] | None
) -> None:
    if bands is not None:
        numbers = {**numbers, **{f"band{index}": values for index, values in enumerate(bands.result())}}
    staging.append(columns, numbers)


def _files(raw: Path) -> list[tuple[str, Path]]:
    """The fetched files with their splits, in a fixed order.

    Raises:
        UserError: There is none.
    """
    found = [(split, path) for split in SPLIT_CODES for path in sorted((raw / split).glob("*")) if path.is_file()]
    if not found:
        raise UserError("no fetched files here", where=str(raw), fix="Run `dvc repro fetch`")
    return found
