"""The Pareto front of a set of cost vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def pareto_front(costs: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the names that no other dominates, in order; `costs` are values to minimise, equally many a name."""
    return [
        name
        for name, own in costs.items()
        if not any(_dominates(other, own) for other_name, other in costs.items() if other_name != name)
    ]


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether no value is worse and one is better."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
