"""How several judgements of one text are spread over the labels: a JSON record of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

_EXCERPT = 60


def problems(records: Iterable[Any], known: Collection[str] | None) -> dict[int, str]:
    """What is wrong with records, by their position; one that is missing is not wrong."""
    found = {position: _problem(record, known) for position, record in enumerate(records) if isinstance(record, str)}
    return {position: reason for position, reason in found.items() if reason}


def probabilities(records: Iterable[Any], names: Iterable[str], labels: Sequence[str]) -> list[list[float]]:
    """The shares of `labels` in each record, adding up to 1; where it is missing, all at the row's label.

    Args:
        records: Without a problem.
        names: The rows' labels.
        labels: All labels in their order.
    """
    return [
        _shares(record, labels) if isinstance(record, str) else [float(label == name) for name in labels]
        for record, label in zip(records, names, strict=True)
    ]


def _problem(record: str, known: Collection[str] | None) -> str | None:
    """What is wrong with a record such as `{"good": 7, "bad": 3}`, or None; `known` is None before `fit`."""
    shown = repr(record[:_EXCERPT])
    try:
        weights = {str(label): float(weight) for label, weight in json.loads(record).items()}
    except (ValueError, TypeError, AttributeError):
        return f"{shown} is no JSON record of a weight for each label"
    if known and (unknown := sorted(set(weights) - set(known))):
        return f"{unknown[0][:_EXCERPT]!r} is none of the labels"
    if not all(0 <= weight < math.inf for weight in weights.values()) or sum(weights.values()) <= 0:
        return f"{shown} has a weight below 0, or none above"
    return None


def _shares(record: str, labels: Sequence[str]) -> list[float]:
    weights = json.loads(record)
    total = sum(map(float, weights.values()))
    return [float(weights.get(label, 0)) / total for label in labels]
