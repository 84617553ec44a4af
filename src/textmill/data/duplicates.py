"""Rows that say the same: found by hash, by MinHash bands, and checked by their shingles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from textmill.data.minhash import jaccard

_ROWS_AT_ONCE = 4_000_000
"""Rows sorted at once; the others wait on disk."""
_CHARACTERS_AT_ONCE = 4_000_000

Texts = Callable[[NDArray[np.int64]], list[str]]
"""The normalised texts of rows at ascending positions."""


@dataclass
class Duplicates:
    """What was found.

    Attributes:
        exact: Rows that repeat another but for case and white space; shape (rows,).
        near: Rows that nearly repeat another; shape (rows,).
        conflicts: Groups of rows with the same text but unlike targets.
        across: Rows removed because their like is in another split: (own split, other split) -> count.
    """

    exact: NDArray[np.bool_]
    near: NDArray[np.bool_]
    conflicts: int = 0
    across: dict[tuple[int, int], int] = field(default_factory=dict)


def equal_groups(
    values: NDArray[np.uint64], among: NDArray[np.bool_] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of equal values.

    Args:
        values: Hashes, of shape (rows,).
        among: The rows to look at; all by default.

    Yields:
        Positions, ascending within a group of equals, and the number of each one's group. Only
        groups of at least two come; all rows of a group come together.
    """
    parts = max(1, -(-len(values) // _ROWS_AT_ONCE))
    for part in range(parts):
        chosen = np.ones(len(values), bool) if parts == 1 else values % np.uint64(parts) == part
        if among is not None:
            chosen &= among
        positions = np.flatnonzero(chosen)
        order = positions[np.argsort(values[positions], kind="stable")]
        same = values[order[1:]] == values[order[:-1]]
        inside = np.zeros(len(order), bool)
        inside[1:] |= same
        inside[:-1] |= same
        begins = np.ones(len(order), bool)
        begins[1:] = ~same
        yield order[inside], np.cumsum(begins)[inside]


def repeated(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Rows whose value an earlier row has; shape (rows,)."""
    found = np.zeros(len(values), bool)
    for positions, groups in equal_groups(values):
        found[positions[1:][groups[1:] == groups[:-1]]] = True
    return found


def find_exact(
    keys: NDArray[np.uint64], targets: NDArray[np.uint64], rank: NDArray[np.uint8], usable: NDArray[np.bool_]
) -> Duplicates:
    """Rows of one key: the one of lowest rank, and of these the first, stays.

    Keys are 64-bit hashes: among 10 million rows two texts share one with a chance of 1 in 370,000.

    Args:
        keys: Hash of each row's normalised text.
        targets: Hash of each row's targets, to count contradictions.
        rank: Of the row's split; lower ones keep their rows.
        usable: Rows to look at.
    """
    found = Duplicates(np.zeros(len(keys), bool), np.zeros(len(keys), bool))
    for positions, groups in equal_groups(keys, usable):
        order = np.lexsort((positions, rank[positions], groups))
        positions, groups = positions[order], groups[order]
        first = np.ones(len(groups), bool)
        first[1:] = groups[1:] != groups[:-1]
        keeper = positions[first][np.cumsum(first) - 1] if len(positions) else positions
        found.exact[positions[~first]] = True
        _count_across(found, rank, positions[~first], keeper[~first])
        unlike = targets[positions] != targets[keeper]
        found.conflicts += len(np.unique(groups[unlike]))
    return found


def find_near(
    found: Duplicates,
    bands: Iterator[NDArray[np.uint64]],
    rank: NDArray[np.uint8],
    usable: NDArray[np.bool_],
    texts: Texts,
    threshold: float,
    shingle: int,
) -> None:
    """Add near-duplicates to `found`: of all rows that hang together by them, one stays.

    Rows that share a band are compared with the first of them and with the one before, by the
    true Jaccard similarity of their shingles, so that a band met by chance removes nothing.

    Args:
        found: Result of `find_exact`.
        bands: The bands' hashes, each of shape (rows,).
        rank: As in `find_exact`.
        usable: Rows to look at; those in `found.exact` are left out.
        texts: Gives normalised texts.
        threshold: Least similarity.
        shingle: Characters in a shingle.
    """
    among = usable & ~found.exact
    component = np.arange(len(rank), dtype=np.int64)
    for values in bands:
        for positions, groups in equal_groups(values, among):
            pairs = _candidates(positions, groups, component)
            similar = _similar(pairs, texts, threshold, shingle)
            _unite(component, pairs[similar])
    members = np.flatnonzero(among & (np.bincount(component, minlength=len(component))[component] > 1))
    order = members[np.lexsort((members, rank[members], component[members]))]
    if not len(order):
        return
    first = np.ones(len(order), bool)
    first[1:] = component[order[1:]] != component[order[:-1]]
    keeper = order[first][np.cumsum(first) - 1]
    found.near[order[~first]] = True
    _count_across(found, rank, order[~first], keeper[~first])


def _candidates(
    positions: NDArray[np.int64], groups: NDArray[np.int64], component: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pairs to compare, shape (pairs, 2): each row with its group's first and with the one before it."""
    if not len(positions):
        return np.empty((0, 2), np.int64)
    begins = np.ones(len(groups), bool)
    begins[1:] = groups[1:] != groups[:-1]
    first = positions[begins][np.cumsum(begins) - 1]
    with_first = np.stack([first[~begins], positions[~begins]], axis=1)
    with_previous = np.stack([positions[:-1][~begins[1:]], positions[~begins]], axis=1)
    pairs = np.unique(np.concatenate([with_first, with_previous]), axis=0)
    known = component[pairs[:, 0]] == component[pairs[:, 1]]
    unknown: NDArray[np.int64] = pairs[~known]
    return unknown


def _similar(pairs: NDArray[np.int64], texts: Texts, threshold: float, shingle: int) -> NDArray[np.bool_]:
    """Which pairs reach the threshold; shape (pairs,)."""
    similar = np.zeros(len(pairs), bool)
    at_once = 20_000
    done = 0
    while done < len(pairs):
        part = pairs[done : done + at_once]
        rows, index = np.unique(part, return_inverse=True)
        index = index.reshape(part.shape)
        some = texts(rows)
        # Halve the step while the texts are too long for it
        if at_once > 1 and sum(map(len, some)) > _CHARACTERS_AT_ONCE:
            at_once = max(1, at_once // 2)
            continue
        similar[done : done + len(part)] = jaccard(index[:, 0], index[:, 1], some, shingle) >= threshold
        done += len(part)
    return similar


def _unite(component: NDArray[np.int64], edges: NDArray[np.int64]) -> None:
    """Give all rows that the edges join the same component, in place."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(edges):
        return
    names, index = np.unique(component[edges], return_inverse=True)
    index = index.reshape(edges.shape)
    graph = coo_array((np.ones(len(index), np.int8), (index[:, 0], index[:, 1])), shape=(len(names), len(names)))
    count, labels = connected_components(graph, directed=False)
    lowest = np.full(count, np.iinfo(names.dtype).max, names.dtype)
    np.minimum.at(lowest, labels, names)
    renamed = np.searchsorted(names, component)
    renamed[renamed == len(names)] = 0
    hit = names[renamed] == component
    component[hit] = lowest[labels[renamed[hit]]]


def _count_across(
    found: Duplicates, rank: NDArray[np.uint8], removed: NDArray[np.int64], keeper: NDArray[np.int64]
) -> None:
    own, other = rank[removed].astype(int), rank[keeper].astype(int)
    pairs, counts = np.unique(np.stack([own, other], axis=1), axis=0, return_counts=True)
    for (one, two), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if one != two:
            found.across[one, two] = found.across.get((one, two), 0) + count
