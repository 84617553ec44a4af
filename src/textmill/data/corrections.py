"""Apply a user's corrections of labels: `prepare.corrections`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa

from textmill.config.sections.prepare import PrepareConfig, ReadConfig
from textmill.data.first_pass import FirstPassResult
from textmill.data.formats import detect
from textmill.data.mapping import as_text, unified_label
from textmill.data.reading import preview
from textmill.data.rejected_rows_file import RejectedRowsFile
from textmill.data.selection import DROPPED, Selection
from textmill.data.shingles import normalise
from textmill.data.staging import FILE, ROW, Staging
from textmill.errors import UserError
from textmill.fetching.corpus import CORRECTIONS
from textmill.text.rejected_rows import RejectedRow, excerpt

if TYPE_CHECKING:
    from textmill.tasks.base import State, Task

ANSWER, REMOVE = "right_label", "remove"
_LABEL, _SHARES = "label", "label_shares"
_MOST_ROWS = 10_000_000
_Answer = tuple[str, dict[str, str]]
"""The right label, or `REMOVE`, and the normalised texts that the row must have, by column."""


@dataclass
class Corrections:
    """Right labels by the position of the row, for labels that change, and the number of removed rows."""

    labels: dict[int, str] = field(default_factory=dict)
    removed: int = 0


def correct(
    config: PrepareConfig,
    task: Task,
    state: State,
    raw: Path,
    staging: Staging,
    first_pass: FirstPassResult,
    selection: Selection,
    rejected: RejectedRowsFile,
) -> Corrections:
    """Return the right labels of the file that `fetch` brought; drop the rows to remove from `selection`.

    The splits have been cut before, so that no row changes its split.

    Raises:
        UserError: The task has no column `label`, or the file is missing, lacks a column, or has an unknown
            label, an unknown id or another text.
    """
    result = Corrections()
    if config.corrections is None:
        return result
    if _LABEL not in task.target_columns:
        _refuse(f"{task.name} has no column {_LABEL!r}", "Remove the setting")
    answers = _read(raw / CORRECTIONS, config.corrections, task, state)
    met: dict[str, bool] = {}
    for start, chunk in staging.chunks(["id", _LABEL, *task.text_columns, FILE, ROW]):
        for offset, identity in enumerate(chunk.column("id").to_pylist()):
            position = start + offset
            if identity not in answers or selection.repeated_ids[position]:
                continue
            answer, texts = answers[identity]
            row = chunk.slice(offset, 1).to_pylist()[0]
            same = all(normalise(row[name]) == text for name, text in texts.items())
            if same and met.get(identity):
                _refuse(f"the id {excerpt(identity)!r} stands for two rows", "Give the rows ids of their own")
            met[identity] = met.get(identity, False) or same
            if not same or selection.split[position] == DROPPED:
                continue
            if answer == REMOVE:
                selection.split[position] = DROPPED
                shown = excerpt(row[task.text_columns[0]])
                reason = "was removed by prepare.corrections"
                rejected.add([RejectedRow(row[ROW], _LABEL, reason, first_pass.files[row[FILE]], shown)])
                rejected.filtered += 1
                result.removed += 1
            elif answer != row[_LABEL]:
                result.labels[position] = answer
    for identity in answers:
        if not met.get(identity):
            what = "has another text in the data" if identity in met else "is the id of no usable row"
            _refuse(f"{excerpt(identity)!r} {what}", f"Correct or delete its line in {config.corrections}")
    return result


def with_labels(chunk: pa.Table, start: int, labels: Mapping[int, str]) -> pa.Table:
    """Return a chunk, whose first row is at position `start`, with the right labels; they get all `label_shares`."""
    changed = {at - start: label for at, label in labels.items() if start <= at < start + chunk.num_rows}
    if not changed:
        return chunk
    shares = {at: json.dumps({label: 1}) for at, label in changed.items()}
    for name, values in ((_LABEL, changed), (_SHARES, shares)):
        if name in chunk.schema.names:
            column = [values.get(at, old) for at, old in enumerate(chunk.column(name).to_pylist())]
            index = chunk.schema.get_field_index(name)
            chunk = chunk.set_column(index, name, pa.array(column, chunk.schema.field(name).type))
    return chunk


def _read(folder: Path, name: str, task: Task, state: State) -> dict[str, _Answer]:
    """Return the file's answers by id; rows without one are left out."""
    path = folder / Path(name).name
    if not path.is_file():
        _refuse(f"{name} was not fetched", "Run `dvc repro fetch`")
    options = ReadConfig(columns={})
    rows = preview(path, name, options, detect(path, name, options), _MOST_ROWS)
    answers: dict[str, _Answer] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            _refuse(f"row {number} of {name} {row.reason}", "Correct it")
        for column in ("id", ANSWER):
            if column not in row:
                _refuse(f"{name} has no column {column!r}", f"It needs the columns id and {ANSWER}")
        answer = unified_label(as_text(row[ANSWER]) or "")
        if not answer:
            continue
        identity = as_text(row["id"]) or ""
        if answer != REMOVE and answer not in state["labels"]:
            known = ", ".join(state["labels"][:8])
            _refuse(f"{excerpt(answer)!r} (row {number} of {name}) is none of the labels {known}", f"Or write {REMOVE}")
        if identity in answers:
            _refuse(f"{name} has two answers for the id {excerpt(identity)!r}", "Keep one")
        given = {column: as_text(row.get(column)) for column in task.text_columns}
        answers[identity] = answer, {column: normalise(text) for column, text in given.items() if text}
    return answers


def _refuse(message: str, fix: str) -> NoReturn:
    raise UserError(message, where="prepare.corrections", fix=fix)
