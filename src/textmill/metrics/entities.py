"""Metrics of entities, as of CoNLL 2003: a span counts if both ends and the label are right.

They equal seqeval's: `tests/code/test_entities.py` compares both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.metrics.base import Columns, Metric, Score, Section
from textmill.metrics.categories import Floats, Integers, ratio
from textmill.text.entities import Entity, Units, entities_of, read_entities, unit_spans, write_entities
from textmill.text.token_windows import NO_UNIT

if TYPE_CHECKING:
    import pandas as pd

_HITS, _PREDICTED, _TRUE = "hits", "predicted", "true"
_NO_TAG = "O"


def tag_names(labels: Sequence[str]) -> list[str]:
    """Return the tags of entity labels: `O`, then `B-` and `I-` of each."""
    return [_NO_TAG, *(f"{prefix}-{label}" for label in labels for prefix in "BI")]


def unit_logits(
    logits: Sequence[NDArray[np.float32]], units: Sequence[Sequence[int]], count: int
) -> NDArray[np.float64]:
    """Return the logits of each unit of a text, shape (count, tags), NaN for one without a token.

    A unit in several windows takes those of the window in which it has the most context on its shorter side.

    Args:
        logits: Logits of each window's tokens, shape (at least tokens, tags).
        units: The unit that begins with each token of each window.
        count: Number of units.
    """
    width = logits[0].shape[-1]
    result, context = np.full((count, width), np.nan), np.full(count, -1)
    for values, of_tokens in zip(logits, units, strict=True):
        places = np.flatnonzero(np.asarray(of_tokens) != NO_UNIT)
        owners = np.asarray(of_tokens)[places]
        room = np.minimum(places, len(of_tokens) - 1 - places)
        better = room > context[owners]
        result[owners[better]], context[owners[better]] = values[places[better]], room[better]
    return result


def best_tags(logits: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
    """Return the most probable valid sequence of tags (Viterbi 1967), and the probability of each, shape (units,).

    Tags are those of `tag_names`; `I-X` is valid after `B-X` and `I-X` only. A unit without logits is `O`.
    """
    if not len(logits):
        return [], np.empty(0)
    values = np.where(np.isnan(logits), 0.0, logits)
    values[np.isnan(logits[:, 0]), 1:] = -np.inf
    values = values - values.max(axis=1, keepdims=True)
    values = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    tags = values.shape[1]
    inside = np.arange(2, tags, 2)
    step = np.zeros((tags, tags))
    step[:, inside] = -np.inf
    step[inside, inside] = step[inside - 1, inside] = 0
    score = values[0].copy()
    score[inside] = -np.inf
    back = np.zeros(values.shape, np.intp)
    for position in range(1, len(values)):
        paths = score[:, None] + step
        back[position] = paths.argmax(axis=0)
        score = paths.max(axis=0) + values[position]
    path = [int(score.argmax())]
    for position in range(len(values) - 1, 0, -1):
        path.append(int(back[position, path[-1]]))
    path.reverse()
    return path, np.exp(values[np.arange(len(path)), path])


def found_entities(text: str, units: Units, logits: NDArray[np.float64], tags: Sequence[str]) -> dict[Entity, float]:
    """Return the entities of a text with their scores: the mean probability of their tags."""
    spans = unit_spans(text, units)
    path, probability = best_tags(logits)
    found = {}
    for entity in entities_of([tags[tag] for tag in path], spans):
        inside = [entity.start <= start < entity.end for start, _ in spans]
        found[entity] = float(probability[np.array(inside)].mean())
    return found


def entity_table(frame: pd.DataFrame, found: Sequence[Sequence[Entity]], labels: Sequence[str]) -> pd.DataFrame:
    """Return `id`, `text`, `entities`, `prediction` and the counts of each row: hits, predicted, true; by label too."""
    import pandas as pd

    texts = frame["text"].tolist()
    cells = frame["entities"].tolist() if "entities" in frame else [None] * len(frame)
    true = [read_entities(cell, text) for cell, text in zip(cells, texts, strict=True)]
    table: dict[str, Any] = {name: frame[name].to_numpy() for name in ("id", "text", "entities") if name in frame}
    table["prediction"] = [write_entities(row) for row in found]
    pairs = [(set(row), set(other)) for row, other in zip(found, true, strict=True)]
    for kind, chosen in (
        (_HITS, [a & b for a, b in pairs]),
        (_PREDICTED, [a for a, _ in pairs]),
        (_TRUE, [b for _, b in pairs]),
    ):
        counted = [Counter(entity.label for entity in row) for row in chosen]
        table[kind] = np.array([row.total() for row in counted])
        table |= {f"{kind}/{label}": np.array([row[label] for row in counted]) for label in labels}
    return pd.DataFrame(table)


def entity_metrics(labels: Sequence[str]) -> list[Metric]:
    """Return F1 (over all entities, the main one), precision, recall, macro F1, and those of each label."""

    def of(metric: Callable[[Floats, Floats, Floats], Floats], ending: str = "") -> Score:
        return lambda columns, index: metric(*_sums(columns, index, ending))

    def macro_f1(columns: Columns, index: Integers) -> Floats:
        return np.asarray(np.mean([_f1(*_sums(columns, index, f"/{label}")) for label in labels], axis=0))

    kinds = (("f1", _f1), ("precision", _precision), ("recall", _recall))
    return [
        *(Metric(name, of(metric)) for name, metric in kinds),
        Metric("macro_f1", macro_f1),
        *(Metric(f"{name}/{label}", of(metric, f"/{label}")) for label in labels for name, metric in kinds),
    ]


def entity_scores(found: Sequence[Sequence[Entity]], true: Sequence[Sequence[Entity]]) -> dict[str, float]:
    """Return `f1`, `precision` and `recall` over the entities of all rows."""
    pairs = [(set(row), set(other)) for row, other in zip(found, true, strict=True)]
    sums = [np.array([float(sum(map(len, rows)))]) for rows in zip(*((a & b, a, b) for a, b in pairs), strict=True)]
    kinds = (("f1", _f1), ("precision", _precision), ("recall", _recall))
    return {name: float(metric(*sums)[0]) for name, metric in kinds}


def entity_sections(predictions: pd.DataFrame, labels: Sequence[str]) -> list[Section]:
    """Return the sections on labels that are never predicted, if any, and on each label."""
    import pandas as pd

    every = np.arange(len(predictions))[None]
    columns = {str(name): predictions[name].to_numpy() for name in predictions}
    rows = []
    for label in labels:
        hits, predicted, true = _sums(columns, every, f"/{label}")
        values = {
            name: float(of(hits, predicted, true)[0])
            for name, of in (("precision", _precision), ("recall", _recall), ("F1", _f1))
        }
        counts = {"entities": int(true[0]), "predicted": int(predicted[0])}
        rows.append({"label": label, **counts, **{name: round(value, 4) for name, value in values.items()}})
    text = "An entity counts if its start, its end and its label are right."
    sections = [Section("Entities", text, pd.DataFrame(rows))]
    if missing := never_predicted(predictions, labels):
        text = f"The model never predicts: {', '.join(missing)}. Each of them occurs in the test split."
        sections.insert(0, Section("Labels that are never predicted", text))
    return sections


def never_predicted(predictions: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Return the labels that occur in an `entity_table` and are never predicted."""
    return [
        name
        for name in labels
        if predictions[f"{_TRUE}/{name}"].any() and not predictions[f"{_PREDICTED}/{name}"].any()
    ]


def entity_errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a missed or a wrong entity, those with the most first, entities as `text (label)`."""
    import pandas as pd

    rows = []
    for row in predictions.to_dict("records"):
        true, found = (set(read_entities(row[name], row["text"])) for name in ("entities", "prediction"))
        if true != found:
            missed, wrong = (_shown(part, row["text"]) for part in (true - found, found - true))
            errors = len(true ^ found)
            rows.append({"id": row["id"], "text": row["text"], "missed": missed, "wrong": wrong, "errors": errors})
    table = pd.DataFrame(rows, columns=["id", "text", "missed", "wrong", "errors"])
    return table.sort_values(["errors", "id"], ascending=[False, True], kind="stable", ignore_index=True)


def lexicon(texts: Sequence[str], entities: Sequence[Sequence[Entity]], units: Units) -> Callable[[str], list[Entity]]:
    """Learn the texts of entities; return a function that finds them in a text, the longest first.

    A text counts if at least half of its occurrences in training are entities, with their most frequent label.
    """
    known: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for text, row in zip(texts, entities, strict=True):
        for entity in row:
            part = text[entity.start : entity.end]
            known[tuple(part[a:b] for a, b in unit_spans(part, units))][entity.label] += 1
    longest = max(map(len, known), default=0)
    occurrences: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = [text[a:b] for a, b in unit_spans(text, units)]
        for length in range(1, longest + 1):
            occurrences.update(key for i in range(len(words)) if (key := tuple(words[i : i + length])) in known)
    chosen: Mapping[tuple[str, ...], str] = {
        key: counts.most_common(1)[0][0] for key, counts in known.items() if 2 * counts.total() >= occurrences[key]
    }

    def find(text: str) -> list[Entity]:
        spans, at, found = unit_spans(text, units), 0, []
        words = [text[a:b] for a, b in spans]
        while at < len(words):
            length = next(
                (n for n in range(longest, 0, -1) if tuple(words[at : at + n]) in chosen and at + n <= len(words)), 0
            )
            if length:
                label = chosen[tuple(words[at : at + length])]
                found.append(Entity(spans[at][0], spans[at + length - 1][1], label))
            at += max(1, length)
        return found

    return find


def _shown(entities: set[Entity], text: str) -> str:
    return ", ".join(f"{text[one.start : one.end]} ({one.label})" for one in sorted(entities))


def _sums(columns: Columns, index: Integers, ending: str) -> tuple[Floats, Floats, Floats]:
    hits, predicted, true = (
        np.asarray(columns[kind + ending], float)[index].sum(axis=1) for kind in (_HITS, _PREDICTED, _TRUE)
    )
    return hits, predicted, true


def _f1(hits: Floats, predicted: Floats, true: Floats) -> Floats:
    return ratio(2 * hits, predicted + true)


def _precision(hits: Floats, predicted: Floats, _true: Floats) -> Floats:
    return ratio(hits, predicted)


def _recall(hits: Floats, _predicted: Floats, true: Floats) -> Floats:
    return ratio(hits, true)
