"""Choose the rows whose labels are worth a person's time, and store the labels that a person gave.

A row is worth the more, the less the models are sure of its answer: by the margin between its two most likely labels
(Scheffer et al. 2001), over the mean probabilities of a committee (Seung et al. 1992). The committee is the model,
another one if given, and the models that answered the row when it was captured. More words that training lacks than
held-out texts have make the probabilities less certain in proportion.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.data.cleaning import Cleaner
from textmill.data.corrections import ANSWER, REMOVE
from textmill.data.duplicates import find_repetitions, find_similar
from textmill.data.shingles import normalise
from textmill.errors import UserError
from textmill.evaluation.new_texts import read_new_texts
from textmill.evaluation.reference import Reference, word_lists
from textmill.fetching.sources.captured import LABELS, captured_rows

if TYPE_CHECKING:
    import pandas as pd

    from textmill.config.sections.prepare import CleaningConfig
    from textmill.predicting.predictor import Predictor
    from textmill.tasks.base import Task

Floats = NDArray[np.float64]

_SIMILAR, _SHINGLE = 0.8, 5
_SHOWN_WORDS = 5
_MOST_ROWS = 1_000_000
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_ORIGIN = ("request", "position", "asked", "model", "version")


@dataclass(frozen=True)
class Unlabelled:
    """Rows without a right answer.

    Attributes:
        frame: Clean text columns.
        origin: For each row, the columns that lead back to its request.
        answers: The answer that was captured with each row; None where there is none.
        labelled: Clean texts of the rows that have a right answer, by column.
        skipped: Number of rows without a text.
    """

    frame: pd.DataFrame
    origin: list[dict[str, Any]]
    answers: list[Mapping[str, Any] | None]
    labelled: list[list[str]]
    skipped: int


@dataclass(frozen=True)
class Worth:
    """What each row's label is worth; each of shape (rows,), between 0 and 1.

    Attributes:
        score: Rows of the highest score are labelled first.
        uncertainty: 1 less the margin of the mean probabilities.
        novelty: Share of words that training lacks, beyond that of held-out texts.
        disagreement: Jensen-Shannon divergence of the models' probabilities, divided by its maximum.
    """

    score: Floats
    uncertainty: Floats
    novelty: Floats
    disagreement: Floats


def worth(probabilities: Floats, novelty: Floats, several: bool = False) -> Worth:
    """Return what rows are worth by the probabilities of a committee.

    Args:
        probabilities: Shape (models, rows, labels); NaN where a model has no answer to a row.
        novelty: Share of words that training lacks, beyond that of held-out texts, shape (rows,).
        several: Whether a row may have several labels, so that each label has a probability of its own.
    """
    from scipy.special import entr

    there = np.logical_not(np.isnan(probabilities).any(axis=2, keepdims=True))
    members = there.sum(axis=0)
    shares = np.where(there, probabilities, 0.0)
    mean = shares.sum(axis=0) / members
    entropy, entropies = ((entr(each) + entr(1 - each) * several).sum(axis=-1) for each in (mean, shares))
    entropies = np.where(there[..., 0], entropies, 0.0).sum(axis=0) / members[:, 0]
    most = np.log(np.maximum(members[:, 0], 2)) * (mean.shape[1] if several else 1)
    unknown = 0.5 if several else 1 / mean.shape[1]
    doubted = (1 - novelty[:, None]) * mean + novelty[:, None] * unknown
    disagreement = np.clip((entropy - entropies) / most, 0, 1)
    return Worth(1 - _margins(doubted, several), 1 - _margins(mean, several), novelty, disagreement)


def _margins(probabilities: Floats, several: bool) -> Floats:
    """Return the difference of the two most likely answers; of several labels that of the least certain one."""
    if several:
        least: Floats = np.abs(2 * probabilities - 1).min(axis=1)
        return least
    two = np.sort(probabilities, axis=1)[:, -2:]
    margins: Floats = two[:, 1] - two[:, 0]
    return margins


def choose_rows(score: Floats, texts: Sequence[Sequence[str]], most: int) -> NDArray[np.int64]:
    """Return the positions of at most `most` rows, the highest score first; of near-duplicates the first alone.

    Args:
        score: Shape (rows,).
        texts: The text columns of the rows.
        most: Number of rows.
    """
    order = np.argsort(-score, kind="stable")
    joined = ["\x1f".join(row) for row in zip(*texts, strict=True)]
    repeated = find_repetitions([normalise(joined[row]) for row in order], _SIMILAR, _SHINGLE)
    chosen: NDArray[np.int64] = order[~repeated][:most]
    return chosen


def read_unlabelled(folder: Path, task: Task, cleaning: CleaningConfig, most: int) -> Unlabelled:
    """Read the captured inputs that have no right answer yet; more than `most` are sampled at random.

    Raises:
        UserError: There is none, or none of this task.
    """
    requests = captured_rows(folder / "requests")
    answered = [row for name in ("feedback", LABELS) for row in captured_rows(folder / name, right=True)]
    right = {(row["request"], row["position"]): row for row in answered}
    names = task.text_columns
    if not requests:
        raise UserError("no captured requests", where=str(folder), fix="Start `textmill serve --capture` with it")
    if not any(row.get(name) is not None for row in requests for name in names):
        raise UserError(f"no column {names[0]!r}", where=str(folder), fix="Give the --model that answered them")
    # The language filter selects training data; a text in any language can be labelled
    clean = Cleaner(cleaning.model_copy(update={"languages": None})).clean
    rows: list[dict[str, Any]] = []
    labelled: list[list[str]] = [[] for _ in names]
    skipped = 0
    for row in [*requests, *(row for row in right.values() if names[0] in row)]:
        texts = [clean(row.get(name) or "") for name in names]
        if (row["request"], row["position"]) in right:
            for column, text in zip(labelled, texts, strict=True):
                column.append(normalise(text))
        elif all(text.strip() for text in texts):
            rows.append({**row, **dict(zip(names, texts, strict=True))})
        else:
            skipped += 1
    if not rows:
        raise UserError("every captured request has a right answer", where=str(folder), fix="Capture more requests")
    rows.sort(key=lambda row: (row["time"], row["request"], row["position"]))
    kept = np.sort(np.random.default_rng(0).permutation(len(rows))[:most])
    rows = [rows[place] for place in kept]
    return Unlabelled(
        task.parse_inputs([{name: row[name] for name in names} for row in rows]),
        [{**row, "asked": row["time"].isoformat(timespec="seconds")} for row in rows],
        [_answer(row["answer"]) for row in rows],
        labelled,
        skipped,
    )


def read_file(path: Path, task: Task, cleaning: CleaningConfig, columns: Mapping[str, str], most: int) -> Unlabelled:
    """Read the texts of a file as `read_new_texts` does."""
    new = read_new_texts(path, task, cleaning, columns, most)
    rows = len(new.frame)
    return Unlabelled(new.frame, [{} for _ in range(rows)], [None] * rows, [[] for _ in task.text_columns], new.skipped)


def rank(
    pool: Unlabelled,
    model: Predictor,
    reference: Reference | None,
    other: Predictor | None,
    most: int | None,
    share: float,
) -> tuple[pd.DataFrame, int]:
    """Return the rows to label, one line each, and the number of rows they were chosen from.

    Args:
        pool: The rows.
        model: The model that will learn from the labels.
        reference: Statistics of its training data; None if it was exported without.
        other: Another model, such as the challenger.
        most: Largest number of rows; None chooses `share` of all.
        share: Share of the rows, between 0 and 1.

    Raises:
        UserError: A model's answers have no probabilities of labels, or its labels are others.
    """
    import pandas as pd

    names, labels = model.task.text_columns, model.exported.state.get("labels", [])
    seen = find_similar(
        [[normalise(text) for text in pool.frame[name]] for name in names], [pool.labelled], _SIMILAR, _SHINGLE
    )
    rows = np.flatnonzero(~seen)
    if not len(rows):
        raise UserError("every row resembles a labelled one", fix="Capture more requests")
    frame = pool.frame.iloc[rows].reset_index(drop=True)
    by_model = [model.answer_rows(frame, frame)[1]]
    if "probabilities" not in by_model[0][0]:
        fix = "Give a model that classifies texts"
        raise UserError(f"{model.task.name.replace('_', ' ')} has no probabilities of labels", fix=fix)
    if other is not None:
        if set(other.exported.state.get("labels", [])) != set(labels):
            raise UserError("its labels are not those of the model", where="--other", fix="Give a model of its task")
        by_model.append(other.answer_rows(frame, frame)[1])
    committee: list[Sequence[Mapping[str, Any] | None]] = [*by_model, [pool.answers[row] for row in rows]]
    several = "labels" in by_model[0][0]
    novelty, new_words = _novelty(frame, reference)
    found = worth(np.array([_probabilities(answers, labels) for answers in committee]), novelty, several)
    chosen = choose_rows(found.score, [frame[name].tolist() for name in names], most or math.ceil(share * len(rows)))
    lines: list[dict[str, Any]] = []
    for place in chosen:
        answers = [answers[place] for answers in committee]
        said = [_said(answer) for answer in answers if answer]
        others = [label for label in dict.fromkeys(said) if label != said[0]]
        lines.append(
            {
                "rank": len(lines) + 1,
                ANSWER: "",
                **{name: frame[name].iloc[place] for name in names},
                "answer": said[0],
                "other_answers": "; ".join(others),
                "new_words": " ".join(list(dict.fromkeys(new_words[place]))[:_SHOWN_WORDS]),
                **{
                    name: round(float(getattr(found, name)[place]), 3)
                    for name in ("score", "uncertainty", "novelty", "disagreement")
                },
                **{name: pool.origin[rows[place]].get(name, "") for name in _ORIGIN},
            }
        )
    return pd.DataFrame(lines), len(rows)


def store_labels(path: Path, task: Task, labels: Sequence[str], folder: Path, new_labels: bool) -> tuple[int, int]:
    """Write the labels of a filled-in file below a capture folder, where `CapturedSource` finds them.

    Args:
        path: File of `rank`, with `right_label` filled in for some rows; `remove`, unless a label is named so, keeps a
            row out of the corpus.
        task: The task of the labels.
        labels: Names of the labels that the model knows.
        folder: The capture folder.
        new_labels: Whether other labels are allowed.

    Returns:
        Numbers of labelled rows, and of those of them to remove.

    Raises:
        UserError: The file has no label, lacks a column, has an unknown label, or two answers for a row.
    """
    from textmill.config.sections.prepare import ReadConfig
    from textmill.data.formats import detect
    from textmill.data.mapping import as_text, unified_label
    from textmill.data.reading import preview
    from textmill.serving.capture import write_rows
    from textmill.serving.right_answers import UnknownLabelError, checked_answer

    if not path.is_file():
        raise UserError("no such file", where=str(path), fix="Check the path")
    options, now = ReadConfig(columns={}), datetime.now(UTC)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for number, row in enumerate(preview(path, path.name, options, detect(path, path.name, options), _MOST_ROWS), 1):
        where = f"{path}, row {number}"
        if not isinstance(row, Mapping):
            raise UserError(row.reason, where=where, fix="Correct it")
        if missing := [name for name in (ANSWER, *task.text_columns) if name not in row]:
            fix = "Fill in a file of `textmill label`, and keep its columns"
            raise UserError(f"no column {missing[0]!r}", where=str(path), fix=fix)
        given = as_text(row[ANSWER]) or ""
        if not (word := unified_label(given)):
            continue
        try:
            right = None if word == REMOVE and word not in labels else checked_answer(given, task, labels, new_labels)
        except ValueError as error:
            fix = "Correct it, or --new-labels" if isinstance(error, UnknownLabelError) else "Correct it"
            raise UserError(f"the answer {error}", where=where, fix=fix) from error
        texts = {name: from_spreadsheet(as_text(row[name]) or "") for name in task.text_columns}
        # A row of a file has no request: its text names it, so that the same file can be read twice
        digest = hashlib.sha256("\x1f".join(map(normalise, texts.values())).encode()).hexdigest()[:24]
        position = as_text(row.get("position")) or "0"
        key = (as_text(row.get("request")) or digest, int(position) if position.isdecimal() else 0)
        answer = json.dumps(right, ensure_ascii=False)
        if key in found and found[key]["answer"] != answer:
            raise UserError("another row has the same text or request and another label", where=where, fix="Keep one")
        found[key] = {
            "request": key[0],
            "position": key[1],
            "time": now,
            "asked": _time(as_text(row.get("asked")), now),
            "model": as_text(row.get("model")) or "label",
            "version": as_text(row.get("version")) or path.name,
            "answer": answer,
            **texts,
        }
    if not found:
        raise UserError(f"no row has a {ANSWER}", where=str(path), fix="Fill the column in, for some rows at least")
    try:
        (folder / LABELS).mkdir(parents=True, exist_ok=True)
        write_rows(folder / LABELS, list(found.values()))
    except OSError as error:
        fix = "Give a folder that can be written"
        raise UserError(f"cannot be written ({error.strerror})", where=str(folder), fix=fix) from error
    return len(found), sum(row["answer"] == "null" for row in found.values())


def for_spreadsheet(cell: Any) -> Any:
    """Return a text that a spreadsheet would compute, such as `=1+1`, with `'` before it; other cells unchanged."""
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def from_spreadsheet(cell: str) -> str:
    """Return what `for_spreadsheet` got."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _time(text: str | None, default: datetime) -> datetime:
    """Return a time in ISO 8601; the default for one that a spreadsheet has written in another form."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return default
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _answer(text: str) -> Mapping[str, Any] | None:
    """Return a captured answer; None for one that masks have damaged."""
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    usable = isinstance(answer, Mapping) and isinstance(answer.get("probabilities"), Mapping)
    return answer if usable else None


def _probabilities(answers: Iterable[Mapping[str, Any] | None], labels: Sequence[str]) -> Floats:
    """Return the probabilities of labels, shape (rows, labels); NaN without an answer, or one of other labels."""
    rows = [answer["probabilities"] if answer else {} for answer in answers]
    return np.array([[row[name] if row.keys() == set(labels) else np.nan for name in labels] for row in rows], float)


def _said(answer: Mapping[str, Any]) -> str:
    return str(answer["label"] if "label" in answer else answer["prediction"])


def _novelty(frame: pd.DataFrame, reference: Reference | None) -> tuple[Floats, list[list[str]]]:
    """Return the novelty of each row, the highest of its columns, and the words that training lacks."""
    novelty, new_words = np.zeros(len(frame)), [list[str]() for _ in range(len(frame))]
    if reference is None:
        return novelty, new_words
    for name, known in reference.texts.items():
        for place, words in enumerate(word_lists(frame[name], reference.splitter)):
            new = [word for word in words if word not in known.words]
            new_words[place] += new
            novelty[place] = max(novelty[place], len(new) / max(1, len(words)) - known.unseen_mean)
    return novelty, new_words
