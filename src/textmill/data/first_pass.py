"""First pass of `prepare`: read, map, clean and check; stage clean rows on disk, list the rejected ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from textmill.config.sections.prepare import PrepareConfig, ReadConfig
from textmill.data.chunks import SPLIT_CODES, ChunkCleaner, RawChunk, column_map, uses_signatures
from textmill.data.duplicates import SignatureFiles
from textmill.data.formats import EmptyFileError, detect, split_of
from textmill.data.parallel import Engine
from textmill.data.quality import Tally
from textmill.data.reading import RawRows, read_rows
from textmill.data.rejected_rows_file import RejectedRowsFile
from textmill.data.staging import Staging
from textmill.data.text import WHOLE, Part
from textmill.errors import UserError
from textmill.text.rejected_rows import RejectedRow, excerpt

if TYPE_CHECKING:
    from textmill.tasks.base import Task

_NO_PARTITION = ("", "__HIVE_DEFAULT_PARTITION__")


@dataclass
class FirstPassResult:
    """Summary of the rows read, rejected ones included.

    `files` are named as in messages, and `splits` are those that the source provides. Where near-duplicates
    are not found by signatures, `signatures` is None. `classes` and `sources` map hashes to names.
    `quality` counts what the filters dropped, and `masked` the personal data masked, by kind. `formats` maps what
    was detected to files, `unified` labels that were written otherwise to their rows. `ungrouped` rows lack the value
    by which the splits keep groups together.
    """

    files: list[str] = field(default_factory=list)
    rows: int = 0
    splits: list[str] = field(default_factory=list)
    has_ids: bool = False
    signatures: SignatureFiles | None = None
    classes: dict[int, str] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    quality: Tally = field(default_factory=Tally)
    masked: Counter[str] = field(default_factory=Counter)
    formats: dict[str, list[str]] = field(default_factory=dict)
    unified: Counter[tuple[str, str, str]] = field(default_factory=Counter)
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
        self._map = column_map(config.read, task)
        for key, column in (("group", config.splits.group), ("time", config.splits.time)):
            if column is not None and column not in self._map.names:
                fix = "Map it in prepare.read.columns"
                raise UserError(f"the column {column!r} is not mapped", where=f"prepare.splits.{key}", fix=fix)
        self.result = FirstPassResult(has_ids="id" in self._map.names)

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
        numbers += ["source", "characters"] if self._config.mixture is not None else []
        if uses_signatures(self._config):
            numbers += ["shingles", "sketch"]
            self.result.signatures = SignatureFiles(folder)
        return Staging(folder, self.columns, numbers)

    def run(self, raw: Path, staging: Staging, engine: Engine) -> FirstPassResult:
        """Read all files of `raw` (`SPLIT/FILE`) into `staging`; `engine` cleans the chunks.

        Raises:
            UserError: A file is empty or lacks a column.
        """
        cleaner = ChunkCleaner(self._config, self._task, staging.schema)
        result = self.result
        for chunk in engine.map(cleaner, self._chunks(raw), "cleaned"):
            result.rows += chunk.rows
            result.ungrouped += chunk.ungrouped
            self._rejected.add(chunk.rejected)
            self._rejected.filtered += chunk.filtered
            result.quality.merge(chunk.quality)
            result.masked.update(chunk.masked)
            result.unified.update(chunk.unified)
            result.classes.update(chunk.classes)
            result.sources.update(chunk.sources)
            if result.signatures is not None and chunk.signatures is not None:
                result.signatures.add(staging.rows, chunk.signatures)
            if chunk.table is not None:
                staging.append(chunk.table, chunk.numbers)
        staging.finish()
        return result

    def _chunks(self, raw: Path) -> Iterator[RawChunk]:
        """Read all files, chunk by chunk."""
        config = self._config.read
        empty: dict[str, EmptyFileError] = {}
        filled: set[str] = set()
        for split, path, part in self._parts(raw):
            folder, _, name = path.relative_to(raw).as_posix().partition("/")
            label = f"data/raw/files/{folder}/{name}"
            self.result.files.append(label)
            constants = path_columns(name, config)
            wanted = list(dict.fromkeys([*self._map.wanted, *filter(None, [config.split_column])]))
            wanted = [column for column in wanted if column not in constants]
            try:
                found = detect(path, label, config, wanted)
                for rows in read_rows(path, label, config, wanted, part, found):
                    rows.columns |= {column: [value] * len(rows.lines) for column, value in constants.items()}
                    for own, some in _by_split(rows, config.split_column, split, label):
                        if own not in self.result.splits:
                            self.result.splits.append(own)
                        yield RawChunk(some, own, name, label, len(self.result.files) - 1)
            except EmptyFileError as error:  # such as a part that Spark writes
                empty.setdefault(split, error)
                self.result.formats.setdefault("an empty file", []).append(label)
                continue
            filled.add(split)
            self.result.formats.setdefault(str(found), []).append(label)
        for split, without_rows in empty.items():
            if split not in filled:
                raise without_rows

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


def _by_split(rows: RawRows, column: str | None, split: str, label: str) -> Iterator[tuple[str, RawRows]]:
    """Yield the rows of each split that a column names; without one, all of them with the split of their file."""
    if column is None or not rows.lines:
        yield split, rows
        return
    places: dict[str, list[int]] = {}
    for place, value in enumerate(rows.columns[column]):
        if own := split_of(str(value)):
            places.setdefault(own, []).append(place)
        else:
            reason = f"is {excerpt(value)!r}, and names none of the splits train, validation (dev) and test"
            rows.rejected.append(RejectedRow(rows.lines[place], column, reason, label))
    for own in places or [split]:
        kept = places.get(own, [])
        columns = {name: [values[place] for place in kept] for name, values in rows.columns.items()}
        yield own, RawRows([rows.lines[place] for place in kept], columns, rows.rejected)
        rows.rejected = []


def path_columns(name: str, config: ReadConfig) -> dict[str, str | None]:
    """Return the columns that a file's path has: its stem, its folder, and `column=value` folders as Spark writes."""
    *folders, file = name.split("/")
    parts = (folder.partition("=") for folder in folders if "=" in folder)
    values: dict[str, str | None] = {key: None if value in _NO_PARTITION else unquote(value) for key, _, value in parts}
    if config.file_column is not None:
        stem = file.partition(".")[0]
        names = [stem, *reversed(folders)] if config.file_column == config.split_column else [stem]
        values[config.file_column] = next(filter(split_of, names), stem)
    if config.folder_column is not None:
        values[config.folder_column] = folders[-1] if folders else None
    return values


def _list_files(raw: Path) -> list[tuple[str, Path]]:
    """Return the fetched files with their splits, in a fixed order."""
    files = [(split, path) for split in SPLIT_CODES for path in sorted((raw / split).rglob("*")) if path.is_file()]
    if not files:
        raise UserError("no fetched files here", where=str(raw), fix="Run `dvc repro fetch`")
    return files
