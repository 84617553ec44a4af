"""Find duplicate rows: exact by hash, near by MinHash bands and the Jaccard similarity of shingles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from textmill.data.minhash import jaccard

_ROWS_AT_ONCE = 4_000_000
"""Rows sorted at once; more are sorted in several passes, to bound memory."""
_CHARACTERS_AT_ONCE = 4_000_000

Texts = Callable[[NDArray[np.int64]], list[str]]
"""Return the normalised texts of the rows at ascending positions."""


@dataclass
class Duplicates:
    """Rows to drop as duplicates, and counts.

    Attributes:
        exact: Rows equal to another except for case and white space; shape (rows,).
        near: Rows nearly equal to another; shape (rows,).
        conflicts: Number of groups with equal texts but different targets.
        across: Rows dropped for a duplicate in another split: (own split, other split) -> count.
    """

    exact: NDArray[np.bool_]
    near: NDArray[np.bool_]
    conflicts: int = 0
    across: dict[tuple[int, int], int] = field(default_factory=dict)


def equal_groups(
    values: NDArray[np.uint64], among: NDArray[np.bool_] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the positions of equal values of shape (rows,), and the number of each position's group.

    Positions ascend within a group. Groups have at least two rows and are never divided between two
    yields. `among` is a mask of the rows to group; all by default.
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


def find_repeated(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return a mask, shape (rows,), of the rows whose value an earlier row has."""
    mask = np.zeros(len(values), bool)
    for positions, groups in equal_groups(values):
        mask[positions[1:][groups[1:] == groups[:-1]]] = True
    return mask


def find_exact(
    keys: NDArray[np.uint64], targets: NDArray[np.uint64], rank: NDArray[np.uint8], usable: NDArray[np.bool_]
) -> Duplicates:
    """Find rows with equal keys; the first row of the lowest rank stays.

    Keys are 64-bit hashes: the chance that two of 10 million texts collide is 1 in 370,000.

    Args:
        keys: Hash of each row's normalised text.
        targets: Hash of each row's targets, to count conflicts.
        rank: Rank of each row's split.
        usable: Mask of the rows to compare.
    """
    duplicates = Duplicates(np.zeros(len(keys), bool), np.zeros(len(keys), bool))
    for positions, groups in equal_groups(keys, usable):
        order = np.lexsort((positions, rank[positions], groups))
        positions, groups = positions[order], groups[order]
        first, keeper = _keepers(positions, groups)
        duplicates.exact[positions[~first]] = True
        _count_across(duplicates, rank, positions[~first], keeper[~first])
        unlike = targets[positions] != targets[keeper]
        duplicates.conflicts += len(np.unique(groups[unlike]))
    return duplicates


def find_near(
    duplicates: Duplicates,
    bands: Iterator[NDArray[np.uint64]],
    rank: NDArray[np.uint8],
    usable: NDArray[np.bool_],
    texts: Texts,
    threshold: float,
    shingle: int,
) -> None:
    """Add near-duplicates to the result of `find_exact`: one row of each connected component stays.

    Rows that share a band are compared with the band's first row and with the row before, by the
    exact Jaccard similarity of their shingles. So a chance collision of bands removes nothing.

    Args:
        duplicates: Result of `find_exact`; its exact duplicates are not compared.
        bands: Hashes of each band, each of shape (rows,).
        rank: Rank of each row's split.
        usable: Mask of the rows to compare.
        texts: Returns normalised texts.
        threshold: Minimum similarity of near-duplicates.
        shingle: Characters of a shingle.
    """
    among = usable & ~duplicates.exact
    component = np.arange(len(rank), dtype=np.int64)
    for values in bands:
        for positions, groups in equal_groups(values, among):
            pairs = _candidates(positions, groups, component)
            similar = _similar(pairs, texts, threshold, shingle)
            _unite(component, pairs[similar])
    members = np.flatnonzero(among & (np.bincount(component, minlength=len(component))[component] > 1))
    order = members[np.lexsort((members, rank[members], component[members]))]
    first, keeper = _keepers(order, component[order])
    duplicates.near[order[~first]] = True
    _count_across(duplicates, rank, order[~first], keeper[~first])


def _keepers(positions: NDArray[np.int64], groups: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return a mask of the first position of each group, and for each position its group's first."""
    first = np.ones(len(groups), bool)
    first[1:] = groups[1:] != groups[:-1]
    return first, positions[first][np.cumsum(first) - 1]


def _candidates(
    positions: NDArray[np.int64], groups: NDArray[np.int64], component: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return pairs to compare, shape (pairs, 2): each row with its group's first row and with the row before."""
    begins, first = _keepers(positions, groups)
    with_first = np.stack([first[~begins], positions[~begins]], axis=1)
    with_previous = np.stack([positions[:-1][~begins[1:]], positions[~begins]], axis=1)
    pairs = np.unique(np.concatenate([with_first, with_previous]), axis=0)
    new: NDArray[np.int64] = pairs[component[pairs[:, 0]] != component[pairs[:, 1]]]
    return new


def _similar(pairs: NDArray[np.int64], texts: Texts, threshold: float, shingle: int) -> NDArray[np.bool_]:
    """Return a mask, shape (pairs,), of the pairs that reach the threshold."""
    similar = np.zeros(len(pairs), bool)
    at_once = 20_000
    done = 0
    while done < len(pairs):
        part = pairs[done : done + at_once]
        rows, index = np.unique(part, return_inverse=True)
        index = index.reshape(part.shape)
        part_texts = texts(rows)
        # Halve the step while the texts are too long for it
        if at_once > 1 and sum(map(len, part_texts)) > _CHARACTERS_AT_ONCE:
            at_once = max(1, at_once // 2)
            continue
        similar[done : done + len(part)] = jaccard(index[:, 0], index[:, 1], part_texts, shingle) >= threshold
        done += len(part)
    return similar


def _unite(component: NDArray[np.int64], edges: NDArray[np.int64]) -> None:
    """Merge the components that the edges connect, in place."""
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
    duplicates: Duplicates, rank: NDArray[np.uint8], removed: NDArray[np.int64], keeper: NDArray[np.int64]
) -> None:
    own, other = rank[removed].astype(int), rank[keeper].astype(int)
    pairs, counts = np.unique(np.stack([own, other], axis=1), axis=0, return_counts=True)
    for (one, two), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if one != two:
            duplicates.across[one, two] = duplicates.across.get((one, two), 0) + count
