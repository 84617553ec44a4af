"""Statistics of the training data in the exported folder: `reference.json`.

`textmill.evaluation.drift` compares new texts with it when the training data is not available. It
has counts of lengths, words, targets and answers, and raw outputs of some held-out rows. It has no
text except the frequent words of the training split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from textmill.config.section import Section
from textmill.config.sections.prepare import WordsConfig
from textmill.data.prepared import Prepared
from textmill.data.words import word_splitter
from textmill.errors import UserError
from textmill.files import read_json, write_json
from textmill.tasks.abilities import drift_features_of, examples_of

if TYPE_CHECKING:
    import pandas as pd

    from textmill.metrics.base import Outputs
    from textmill.tasks.base import Task

REFERENCE_FILE = "reference.json"

_MOST_ROWS = 100_000
"""Number of rows to count; a larger split is sampled at even distances."""
_MOST_WORDS = 20_000
_MOST_CATEGORIES = 200
_SAMPLE = 500
_DIMENSIONS = 32
_BINS = 10


class TextReference(Section):
    """Statistics of one text column.

    Attributes:
        edges: Inner edges of the length bins, in characters: deciles of the training split.
        lengths: Training rows in each bin, `len(edges) + 1` values.
        words: Occurrences of the most frequent training words, case folded.
        unseen_mean: Share of a held-out text's words that are not in `words`, mean over texts.
        unseen_variance: Variance of that share.
    """

    edges: list[float]
    lengths: list[int]
    words: dict[str, int]
    unseen_mean: float
    unseen_variance: float


class Reference(Section):
    """The content of `reference.json`.

    Attributes:
        rows: Number of training rows counted.
        held_out: Number of test rows behind unseen words, answers and outputs.
        splitter: Options that split texts into words.
        texts: Statistics by text column.
        targets: Training rows by target column and value, without columns of too many values.
        answers: Held-out rows by answer field and value.
        outputs: Raw outputs of some held-out rows (see `features`); empty if the evaluated network
            has other outputs than the exported graphs.
    """

    rows: int
    held_out: int
    splitter: WordsConfig
    texts: dict[str, TextReference]
    targets: dict[str, dict[str, int]]
    answers: dict[str, dict[str, int]]
    outputs: list[list[float]]


def write_reference(task: Task, prepared: Prepared, outputs: Outputs, splitter: WordsConfig, folder: Path) -> None:
    """Write `reference.json` from the training split and the model's outputs for the test split.

    `outputs` is empty if the exported graphs have other outputs than the evaluated network.
    """
    columns = [*task.text_columns, *task.target_columns]
    train, test = _evenly(prepared, "train", columns), _evenly(prepared, "test", columns)
    answers: list[dict[str, Any]] = []
    if outputs:
        frame = examples_of(task, prepared.split("test")).frame()
        rows = {str(name): frame[name].tolist() for name in frame}
        answers = task.answers(outputs, rows, rows, prepared.state)
    reference = Reference(
        rows=len(train),
        held_out=len(test),
        splitter=splitter,
        texts={name: _text(train[name], test[name], splitter) for name in task.text_columns},
        targets=categories({name: train[name].tolist() for name in task.target_columns}),
        answers=categories(fields(answers)),
        outputs=_sample(features(drift_features_of(task, outputs))) if outputs else [],
    )
    write_json(folder / REFERENCE_FILE, reference.model_dump(mode="json"))


def _sample(rows: NDArray[np.float64]) -> list[list[float]]:
    chosen = np.random.default_rng(0).permutation(len(rows))[:_SAMPLE]
    sampled: list[list[float]] = np.round(rows[np.sort(chosen)], 5).tolist()
    return sampled


def read_reference(folder: Path) -> Reference:
    """Read the reference of an exported folder.

    Raises:
        UserError: The file is missing or invalid.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        fix = "Export and register the model again: `dvc repro --force export && dvc repro`"
        raise UserError("the model was exported without statistics of its training data", where=str(path), fix=fix)
    try:
        return Reference.model_validate(read_json(path))
    except (ValidationError, ValueError) as error:
        raise UserError("not a valid reference.json", where=str(path), fix="Export the model again") from error


def word_lists(texts: Iterable[str], splitter: WordsConfig) -> list[list[str]]:
    """Split each text into words, case folded."""
    return [joined.casefold().split() for joined in word_splitter(splitter)(list(texts))]


def unseen_shares(words: Sequence[Sequence[str]], known: Mapping[str, int]) -> NDArray[np.float64]:
    """Return the share of unknown words of each text that has words."""
    return np.array([sum(word not in known for word in text) / len(text) for text in words if text])


def fields(answers: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the text fields of natural answers: only these can be categories."""
    names = [name for name, value in answers[0].items() if isinstance(value, str)] if answers else []
    return {name: [answer[name] for answer in answers] for name in names}


def categories(columns: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, int]]:
    """Count the rows of each value by column, most frequent first; drop columns with too many values."""
    counted = {name: Counter(str(value) for value in values) for name, values in columns.items()}
    return {name: dict(counts.most_common()) for name, counts in counted.items() if 0 < len(counts) <= _MOST_CATEGORIES}


def features(outputs: Outputs) -> NDArray[np.float64]:
    """Convert raw outputs to one vector per row, shape (rows, at most 32).

    Average inner axes (tokens); project wide outputs by a fixed random matrix, which approximately
    preserves distances (Johnson & Lindenstrauss 1984).
    """
    parts = []
    for _, values in sorted(outputs.items()):
        flat = np.asarray(values, np.float64).reshape(len(values), -1, values.shape[-1] if values.ndim > 1 else 1)
        parts.append(np.nan_to_num(np.nanmean(flat, axis=1)))
    joined = np.concatenate(parts, axis=1)
    if joined.shape[1] <= _DIMENSIONS:
        return joined
    projection = np.random.default_rng(0).standard_normal((joined.shape[1], _DIMENSIONS)) / math.sqrt(_DIMENSIONS)
    return joined @ projection


def _evenly(prepared: Prepared, split: str, columns: list[str]) -> pd.DataFrame:
    table = prepared.split(split).select(columns)
    if table.num_rows > _MOST_ROWS:
        table = table.take(np.linspace(0, table.num_rows - 1, _MOST_ROWS).astype(np.int64))
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _text(train: pd.Series[str], test: pd.Series[str], splitter: WordsConfig) -> TextReference:
    lengths = train.str.len().to_numpy()
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counted = Counter(word for text in word_lists(train, splitter) for word in text)
    words = dict(counted.most_common(_MOST_WORDS))
    unseen = unseen_shares(word_lists(test, splitter), words)
    return TextReference(
        edges=edges.tolist(),
        lengths=length_counts(lengths, edges.tolist()),
        words=words,
        unseen_mean=float(unseen.mean()) if len(unseen) else 0.0,
        unseen_variance=float(unseen.var(ddof=1)) if len(unseen) > 1 else 0.0,
    )


def length_counts(lengths: NDArray[Any], edges: Sequence[float]) -> list[int]:
    """Count texts in each length bin; an edge belongs to the bin below it."""
    counts: list[int] = np.bincount(np.searchsorted(edges, lengths, side="left"), minlength=len(edges) + 1).tolist()
    return counts
