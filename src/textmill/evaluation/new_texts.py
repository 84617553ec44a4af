"""Read new texts from a file into a task's columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.sections.prepare import CleaningConfig, ReadConfig, TextConfig
from textmill.data.cleaning import Cleaner
from textmill.data.formats import detect, is_table
from textmill.data.mapping import INVISIBLE, ColumnMap
from textmill.data.reading import MissingColumnError, preview, read_rows
from textmill.errors import UserError
from textmill.text.rejected_rows import RejectedRow, excerpt

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
    """Read the rows of a file as `read_inputs_of` does; a file with more than `most` rows is sampled at random.

    Raises:
        UserError: The file is missing, empty, lacks a text column, or has no usable row.
    """
    import numpy as np

    clean = _cleaner(cleaning)
    chooser = np.random.default_rng(0)
    kept: list[dict[str, Any]] = []  # by reservoir sampling (Vitter 1985)
    seen = skipped = 0
    for _, row in read_inputs_of(path, task, cleaning, columns):
        if isinstance(row, RejectedRow):
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
    frame = frame.assign(**{name: [clean(text) for text in frame[name]] for name in task.text_columns})
    named = [name for name in task.target_columns if name in kept[0]]
    return NewTexts(frame, {name: [row[name] for row in kept if row[name] is not None] for name in named}, skipped)


def read_inputs_of(
    path: Path, task: Task, cleaning: CleaningConfig, columns: Mapping[str, str]
) -> Iterator[tuple[int, dict[str, Any] | RejectedRow]]:
    """Yield the rows of a file by the task's columns, or why one is rejected, each with its line.

    The stage `prepare` reads with the same code. A file that is not a table has one text per line, or one JSON
    record. `columns` maps task columns to file columns of another name.

    Raises:
        UserError: The file is missing, empty, or lacks a text column.
    """
    if not path.is_file():
        raise UserError("no such file", where=str(path), fix="Check the path")
    clean, texts = _cleaner(cleaning), task.text_columns
    config = ReadConfig(columns={}) if is_table(path) else (_LINES if len(texts) == 1 else _RECORDS)
    found = detect(path, path.name, config, [columns.get(name, name) for name in texts])
    there = {key: None for row in preview(path, path.name, config, found, 1000) if isinstance(row, dict) for key in row}
    wanted = {name: columns.get(name, name) for name in texts}
    if len(texts) == 1 == len(there) and texts[0] not in columns:
        wanted[texts[0]] = next(iter(there))
    wanted |= {name: columns.get(name, name) for name in task.target_columns if name in columns or name in there}
    targets = [name for name in wanted if name not in texts]
    mapping = ColumnMap(config.model_copy(update={"columns": wanted}), list(texts), texts, targets)
    try:
        for chunk in read_rows(path, path.name, config, list(dict.fromkeys(wanted.values())), found=found):
            yield from ((row.row, row) for row in chunk.rejected)
            mapped, failed = mapping.apply(chunk.columns)
            for position, (line, *values) in enumerate(zip(chunk.lines, *mapped.values(), strict=True)):
                row = dict(zip(mapped, values, strict=True))
                if config is _LINES:
                    row = {name: (text or "").strip() for name, text in row.items()}
                empty = next((name for name in texts if not clean(row[name] or "").strip(INVISIBLE)), None)
                column, reason = failed.get(position, (empty, "is empty after cleaning"))
                shown = excerpt(row[texts[0]])
                yield line, row if column is None else RejectedRow(line, column, reason, path.name, shown)
    except MissingColumnError as error:
        raise UserError(error.what, where=error.where, fix=f"Add --column {texts[0]}=FILE-COLUMN") from error


_LINES = ReadConfig(format="text", text=TextConfig(document="pattern", begins="."), columns={})
_RECORDS = ReadConfig(format="jsonl", columns={})


def _cleaner(cleaning: CleaningConfig) -> Callable[[str], str]:
    # The language filter selects training data; new texts in any language count as drift
    return Cleaner(cleaning.model_copy(update={"languages": None})).clean
