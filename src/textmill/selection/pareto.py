"""Which candidates no other one beats in everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def front(values: Mapping[str, Sequence[float]]) -> list[str]:
    """Names on the Pareto front, in their order.

    Args:
        values: Name -> figures, of which each is better the smaller it is.
    """
    return [
        name
        for name, mine in values.items()
        if not any(_dominates(theirs, mine) for other, theirs in values.items() if other != name)
    ]


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """No figure is worse and one is better."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
