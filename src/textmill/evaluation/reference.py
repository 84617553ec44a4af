"""What the training data was like, in numbers that travel with the model: `reference.json` of the exported folder.

New texts are held against it (see `textmill.evaluation.drift`) where the training data is not at
hand. It holds counts of lengths, words, targets and answers, and raw outputs of some held-out rows;
no text, but the training split's frequent words.
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
"""Training rows that are counted; of a larger split evenly spaced ones."""
_MOST_WORDS = 20_000
_MOST_CATEGORIES = 200
_SAMPLE = 500
_DIMENSIONS = 32
_BINS = 10


class TextReference(Section):
    """Of one text column.

    Attributes:
        edges: Of the bins of length in characters, inner ones only: deciles of the training split.
        lengths: Training rows in each bin, one more than edges.
        words: Occurrences of the most frequent words of the training split, case folded.
        unseen_mean: Share of words that are not in `words`, mean over held-out rows.
        unseen_variance: The same share's variance.
    """

    edges: list[float]
    lengths: list[int]
    words: dict[str, int]
    unseen_mean: float
    unseen_variance: float


class Reference(Section):
    """The content of `reference.json`.

    Attributes:
        rows: Training rows counted.
        held_out: Rows of the test split, which unseen words, answers and outputs are of.
        splitter: How texts are split into words.
        texts: By text column.
        targets: Training rows by value, by target column; columns of too many values are left out.
        answers: Held-out rows by the model's answer, by the answer's field.
        outputs: Raw outputs of some held-out rows, a row each (see `features`); none where the
            evaluation let the network give other outputs than the exported graphs do.
    """

    rows: int
    held_out: int
    splitter: WordsConfig
    texts: dict[str, TextReference]
    targets: dict[str, dict[str, int]]
    answers: dict[str, dict[str, int]]
    outputs: list[list[float]]


def write_reference(task: Task, prepared: Prepared, outputs: Outputs, splitter: WordsConfig, folder: Path) -> None:
    """Write `reference.json` of the training split, and of the model's outputs for the test split.

    Args:
        task: What the model does.
        prepared: Its data.
        outputs: For the test split, such as the exported graphs give; empty where they give others.
        splitter: How texts are split into words.
        folder: The exported folder.
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
        UserError: The folder has none, or one of another form.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        fix = "Export and register the model again: `dvc repro --force export && dvc repro`"
        raise UserError("the model was exported without a reference of its training data", where=str(path), fix=fix)
    try:
        return Reference.model_validate(read_json(path))
    except (ValidationError, ValueError) as error:
        raise UserError("not a reference of training data", where=str(path), fix="Export the model again") from error


def word_lists(texts: Iterable[str], splitter: WordsConfig) -> list[list[str]]:
    """Each text's words, case folded."""
    return [joined.casefold().split() for joined in word_splitter(splitter)(list(texts))]


def unseen_shares(words: Sequence[Sequence[str]], known: Mapping[str, int]) -> NDArray[np.float64]:
    """For each text with any word the share of those that are not known."""
    return np.array([sum(word not in known for word in text) / len(text) for text in words if text])


def fields(answers: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The fields of natural answers that may be categories: texts."""
    names = [name for name, value in answers[0].items() if isinstance(value, str)] if answers else []
    return {name: [answer[name] for answer in answers] for name in names}


def categories(columns: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, int]]:
    """Rows by value of each column, most frequent first; columns that are no categories are left out."""
    counted = {name: Counter(str(value) for value in values) for name, values in columns.items()}
    return {name: dict(counts.most_common()) for name, counts in counted.items() if 0 < len(counts) <= _MOST_CATEGORIES}


def features(outputs: Outputs) -> NDArray[np.float64]:
    """Raw outputs as one vector a row, shape (rows, at most 32).

    Inner axes (tokens) are averaged; wide outputs go through a fixed random projection (Johnson &
    Lindenstrauss 1984), which keeps distances about as they are.
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
    """Texts in each bin of length; an edge belongs to the bin below it."""
    counts: list[int] = np.bincount(np.searchsorted(edges, lengths, side="left"), minlength=len(edges) + 1).tolist()
    return counts
