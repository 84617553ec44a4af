"""Assign rows to splits: seeded, stratified, by content and not by order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from textmill.data.prepared import SPLITS
from textmill.errors import UserError

_MIX = np.uint64(0xBF58476D1CE4E5B9)


def assign_splits(
    keys: NDArray[np.uint64],
    strata: NDArray[np.uint64],
    shares: Mapping[str, float],
    seed: int,
    names: Mapping[int, str],
) -> NDArray[np.uint8]:
    """Assign each row to a split: the share of every stratum for each split named, the rest to `train`.

    Rows of a stratum are sorted by a hash of their key and the seed, and the splits take them in
    turn. So a row's hash does not depend on its position, and rows added later move few others.
    Returns indices into `SPLITS`.

    Args:
        keys: Hash of each row's text, shape (rows,).
        strata: Hash of each row's class, shape (rows,).
        shares: Split -> its share of the rows, above 0.
        seed: Seed of the hash.
        names: Hash of a class -> its name, for messages.

    Raises:
        UserError: A class has fewer rows than there are splits.
    """
    result = np.full(len(keys), SPLITS.index("train"), np.uint8)
    by_stratum = np.argsort(strata, kind="stable").astype(np.uint32 if len(keys) < 1 << 32 else np.int64)
    begins = np.flatnonzero(np.diff(strata[by_stratum])) + 1
    for rows in np.split(by_stratum, begins):
        require_rows(len(rows), names.get(int(strata[rows[0]]), "?"), shares)
        order = shuffled(keys[rows], seed)
        # Only the lowest hashes are sorted: the rest stays in `train`
        counts = _counts(len(rows), shares)
        taken = sum(counts.values())
        lowest = np.flatnonzero(order <= np.partition(order, taken - 1)[taken - 1]) if taken else np.zeros(0, np.int64)
        lowest = lowest[np.argsort(order[lowest], kind="stable")]
        begin = 0
        for split, count in counts.items():
            result[rows[lowest[begin : begin + count]]] = SPLITS.index(split)
            begin += count
    return result


def assign_groups(
    groups: NDArray[np.uint64],
    shares: Mapping[str, float],
    seed: int,
    assign: Callable[..., NDArray[np.uint8]] = assign_splits,
) -> NDArray[np.uint8]:
    """Assign all rows of a group to the same split; `shares` are shares of the groups, each assigned as one row is.

    Raises:
        UserError: There are fewer groups than splits.
    """
    unique, group_of_row = np.unique(groups, return_inverse=True)
    require_rows(len(unique), None, shares)
    return assign(unique, np.zeros_like(unique), shares, seed, {})[group_of_row]


def require_rows(count: int, name: str | None, shares: Mapping[str, float]) -> None:
    """Raise UserError if a class of this name, or the groups (None), are fewer than the splits."""
    if count > len(shares):
        return
    if name is None:
        message = f"{count} group(s) of rows, too few for one in each of {len(shares) + 1} splits"
        fix = "Choose a column with more values, or split by content"
        raise UserError(message, where="prepare.splits.group", fix=fix)
    message = f"the class {name!r} has {count} row(s), too few for one in each of {len(shares) + 1} splits"
    fix = f"Add rows of the class, remove it, or provide the splits {' and '.join(shares)}"
    raise UserError(message, fix=fix)


def _counts(rows: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return the rows of each split: its share, at least 1, with at least 1 left for training."""
    counts: dict[str, int] = {}
    left = rows - 1
    waiting = len(shares)
    for split, share in shares.items():
        waiting -= 1
        counts[split] = min(max(1, round(rows * share)), left - waiting)
        left -= counts[split]
    return counts


def shuffled(keys: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Hash each key with the seed (finaliser of SplitMix64; Steele et al. 2014)."""
    mixed = keys ^ np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
