"""Read new texts from a file into a task's columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.sections.prepare import CleaningConfig, ReadConfig
from textmill.data.cleaning import Cleaner
from textmill.data.formats import is_table
from textmill.data.mapping import as_text
from textmill.data.reading import MissingColumnError, read_rows
from textmill.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from textmill.tasks.base import Task


@dataclass(frozen=True)
class NewTexts:
    """Rows of a file.

    Attributes:
        frame: Cleaned text columns of the task.
        targets: Target columns of the task that the file has.
        skipped: Number of empty or invalid rows.
    """

    frame: pd.DataFrame
    targets: dict[str, list[Any]]
    skipped: int


def read_new_texts(path: Path, task: Task, cleaning: CleaningConfig, columns: Mapping[str, str], most: int) -> NewTexts:
    """Read a table (CSV, TSV, JSON Lines, Parquet); any other file has one text per line.

    `columns` maps task columns to file columns of another name. A file with more than `most` rows is
    sampled at random.

    Raises:
        UserError: The file is missing, empty, lacks a text column, or has no usable row.
    """
    import numpy as np

    if not path.is_file():
        raise UserError("no such file", where=str(path), fix="Check the path")
    chooser = np.random.default_rng(0)
    kept: list[dict[str, Any]] = []  # by reservoir sampling (Vitter 1985)
    seen = skipped = 0
    for row in _table_rows(path, task, columns) if is_table(path) else _lines(path, task):
        if row is None or any(not str(row[name] or "").strip() for name in task.text_columns):
            skipped += 1
            continue
        seen += 1
        if len(kept) < most:
            kept.append(row)
        elif (place := int(chooser.integers(seen))) < most:
            kept[place] = row
    if not kept:
        raise UserError("the file has no row with a text", where=str(path), fix="Check the file and --column")
    frame = task.parse_inputs([{name: row[name] for name in task.text_columns} for row in kept])
    # The language filter selects training data; new texts in any language count as drift.
    clean = Cleaner(cleaning.model_copy(update={"languages": None})).clean
    frame = frame.assign(**{name: [clean(text) for text in frame[name]] for name in task.text_columns})
    named = [name for name in task.target_columns if name in kept[0]]
    return NewTexts(frame, {name: [row[name] for row in kept if row[name] is not None] for name in named}, skipped)


def _table_rows(path: Path, task: Task, columns: Mapping[str, str]) -> Iterator[dict[str, Any] | None]:
    """Yield rows by the task's columns; None for an invalid row."""
    wanted = {name: columns.get(name, name) for name in task.text_columns}
    for name in task.target_columns:
        if name in columns or _has_column(path, name):
            wanted[name] = columns.get(name, name)
    try:
        for chunk in read_rows(path, path.name, ReadConfig(columns=wanted), list(wanted.values())):
            yield from (None for _ in chunk.rejected)
            values = [[as_text(value) for value in chunk.columns[column]] for column in wanted.values()]
            yield from (dict(zip(wanted, row, strict=True)) for row in zip(*values, strict=True))
    except MissingColumnError as error:
        fix = f"Add --column {task.text_columns[0]}=FILE-COLUMN"
        raise UserError(error.what, where=error.where, fix=fix) from error


def _has_column(path: Path, name: str) -> bool:
    try:
        next(iter(read_rows(path, path.name, ReadConfig(columns={name: name}), [name])), None)
    except MissingColumnError:
        return False
    return True


def _lines(path: Path, task: Task) -> Iterator[dict[str, Any] | None]:
    """Yield one text per line, or one JSON record per line if the task has several text columns."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            for line in file:
                text = line.strip()
                yield dict.fromkeys(task.text_columns, text) if len(task.text_columns) == 1 else _record(text, task)
        except UnicodeDecodeError as error:
            raise UserError("not UTF-8", where=str(path), fix="Save the file as UTF-8") from error


def _record(text: str, task: Task) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) and all(name in record for name in task.text_columns) else None
