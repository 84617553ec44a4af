"""How several judgements of one text are spread over the labels: a JSON record of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence

_EXCERPT = 60


def problem(record: str, known: Collection[str] | None) -> str | None:
    """What is wrong with a record such as `{"good": 7, "bad": 3}`, or None.

    Args:
        record: As read from the data.
        known: The labels there are; None when they are not known yet.
    """
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


def probabilities(record: str, labels: Sequence[str]) -> list[float]:
    """The shares of `labels` in a record without a problem; they add up to 1."""
    weights = json.loads(record)
    total = sum(map(float, weights.values()))
    return [float(weights.get(label, 0)) / total for label in labels]
