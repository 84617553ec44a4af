"""Label distributions from several annotations of a text: a JSON record of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

_EXCERPT = 60


def problems(records: Iterable[Any], known: Collection[str] | None) -> dict[int, str]:
    """Return what is wrong with records, by position; a missing record is valid."""
    reasons = {position: _problem(record, known) for position, record in enumerate(records) if isinstance(record, str)}
    return {position: reason for position, reason in reasons.items() if reason}


def probabilities(records: Iterable[Any], names: Iterable[str], labels: Sequence[str]) -> list[list[float]]:
    """Return the probability of each label in each record; a missing record puts all on the row's label."""
    return [
        _shares(record, labels) if isinstance(record, str) else [float(label == name) for name in labels]
        for record, label in zip(records, names, strict=True)
    ]


def _problem(record: str, known: Collection[str] | None) -> str | None:
    """Return what is wrong with a record such as `{"good": 7, "bad": 3}`, or None; `known` is None before `fit`."""
    shown = repr(record[:_EXCERPT])
    try:
        weights = {str(label): float(weight) for label, weight in json.loads(record).items()}
    except (ValueError, TypeError, AttributeError):
        return f"{shown} is not a JSON record of a weight for each label"
    if known and (unknown := sorted(set(weights) - set(known))):
        return f"{unknown[0][:_EXCERPT]!r} is not one of the labels"
    if not all(0 <= weight < math.inf for weight in weights.values()) or sum(weights.values()) <= 0:
        return f"{shown} has a negative weight, or no positive one"
    return None


def _shares(record: str, labels: Sequence[str]) -> list[float]:
    weights = json.loads(record)
    total = sum(map(float, weights.values()))
    return [float(weights.get(label, 0)) / total for label in labels]
