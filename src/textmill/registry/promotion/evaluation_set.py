"""The rows that the gate judges a version by: its own test split, whatever the workspace holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.evaluation.slices import LENGTH
from textmill.predicting.exported import read_specification
from textmill.registry.lineage.version_data import prepared_data
from textmill.registry.runs.origin import DATA
from textmill.tasks.abilities import CutsExamples, natural_inputs
from textmill.tasks.base import Task

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    from mlflow.entities.model_registry import ModelVersion

    from textmill.predicting.predictor import Predictor

SPLIT = "test"
_PASSAGE = 1000
"""Characters of a passage, into which the documents of a language model are cut."""
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class EvaluationSet:
    """The test rows of a version.

    Attributes:
        digest: SHA-256 of ids, texts and targets; equal for every tokenizer.
        frame: Ids, texts, targets and slice columns. `length` counts tokens of the version's own tokenizer.
        inputs: Natural inputs, to measure costs with.
        columns: Names of the text columns.
        texts: Texts of the split, column by column; of a language model those of whole documents.
        row: For each row of `frame` its row in `texts`.
    """

    digest: str
    frame: pd.DataFrame
    inputs: list[dict[str, Any]]
    columns: tuple[str, ...]
    texts: list[list[str]]
    row: NDArray[np.intp]


def evaluation_set(version: ModelVersion, predictor: Predictor, layout: Layout) -> EvaluationSet:
    """Return the test split that a version was made with; see `version_data.prepared_data`.

    The documents of a language model are cut into passages of 1,000 characters, the same for every tokenizer.

    Raises:
        UserError: The split is not available, or has no rows.
    """
    task = predictor.task
    with prepared_data(version, layout, [SPLIT]) as prepared:
        table = prepared.split(SPLIT)
        if not table.num_rows:
            raise UserError("the test split has no rows", where=f"data/prepared/{SPLIT}", fix="Raise splits.test")
        frame: pd.DataFrame = table.drop([name for name in ("input_ids",) if name in table.column_names]).to_pandas()
        columns = task.encode(
            frame.head(1), predictor.tokenizer, predictor.exported.state, predictor.exported.max_length
        )
        frame = frame.drop(columns=[name for name in columns if name in frame and name != LENGTH])
        texts, row = [frame[name].tolist() for name in task.text_columns], np.arange(len(frame))
        if isinstance(task, CutsExamples):
            frame, row = _passages(frame, task.text_columns[0])
        inputs = natural_inputs(task, table)
        return EvaluationSet(rows_digest(table, task), frame, inputs, tuple(task.text_columns), texts, row)


def version_digest(version: ModelVersion, folder: Path, layout: Layout, like: ModelVersion, digest: str) -> str:
    """Return the digest of a version's test split, given that of the version `like`.

    The split is read only if its files differ, as those of another tokenizer do.

    Raises:
        UserError: The split must be read and is not available.
    """
    key = f"{DATA}{SPLIT}_sha256"
    if version.tags.get(key) is not None and version.tags.get(key) == like.tags.get(key):
        return digest
    task = Task.build(read_specification(folder).task)
    with prepared_data(version, layout, [SPLIT]) as prepared:
        return rows_digest(prepared.split(SPLIT), task)


def rows_digest(table: pa.Table, task: Task) -> str:
    """Return the SHA-256 of a split's ids, texts and targets: of no other column, and in any order of the rows."""
    names = ["id", *task.text_columns, *task.target_columns]
    rows = sorted(_row_digests(table.select([name for name in names if name in table.column_names])))
    return hashlib.sha256(b"".join(rows)).hexdigest()


def _row_digests(table: pa.Table) -> Iterator[bytes]:
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()


def _passages(frame: pd.DataFrame, column: str) -> tuple[pd.DataFrame, NDArray[np.intp]]:
    """Cut each document at the last white space before every 1,000 characters; ids get the passage's position.

    The lengths are all equal, since passages of one size are not divided by length. The second result is the
    document of each passage.
    """
    rows, documents = [], []
    for number, row in enumerate(frame.to_dict("records")):
        for start, text in _cut(row[column]):
            rows.append({**row, "id": f"{row['id']}@{start}", column: text, LENGTH: 0})
            documents.append(number)
    return type(frame)(rows), np.array(documents, np.intp)


def _cut(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        end = min(start + _PASSAGE, len(text))
        if end < len(text):
            spaces: Sequence[int] = [text.rfind(space, start, end) for space in " \n"]
            end = max(spaces) + 1 or end
        yield start, text[start:end]
        start = end
