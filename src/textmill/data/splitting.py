"""Assign rows to splits: seeded, stratified, by content and not by order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from textmill.data.prepared import SPLITS
from textmill.errors import UserError

_MIX = np.uint64(0xBF58476D1CE4E5B9)
_ROWS_AT_ONCE = 1_000_000
_HISTOGRAM_BITS = 20


def assign_splits(
    keys: NDArray[np.uint64],
    strata: NDArray[np.uint64],
    shares: Mapping[str, float],
    seed: int,
    names: Mapping[int, str],
    among: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Assign each row to a split: the share of every stratum for each split named, the rest to `train`.

    Rows of a stratum are sorted by a hash of their key and the seed, and the splits take them in
    turn. So a row's hash does not depend on its position, and rows added later move few others.

    The rows are read block by block and never sorted as a whole: a histogram of the hashes shows in which
    range the last row of a split is, and only rows of that range are sorted.

    Args:
        keys: Hash of each row's text, shape (rows,).
        strata: Hash of each row's class, shape (rows,).
        shares: Split -> its share of the rows, above 0.
        seed: Seed of the hash.
        names: Hash of a class -> its name, for messages.
        among: Mask of the rows to assign; None for all. The others get any value.

    Returns:
        Indices into `SPLITS`, shape (rows,).

    Raises:
        UserError: A class has fewer rows than there are splits.
    """

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]]:
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            chosen = np.arange(len(keys[block])) if among is None else np.flatnonzero(among[block])
            of_class = np.searchsorted(classes, strata[block][chosen])
            yield start + chosen, of_class, shuffled(keys[block][chosen], seed)

    classes = _different(strata, among)
    bits = max(0, _HISTOGRAM_BITS - len(classes).bit_length())

    def ranges(of_class: NDArray[np.int64], order: NDArray[np.uint64]) -> NDArray[np.int64]:
        return (of_class << bits) + (order >> np.uint64(64 - bits)).astype(np.int64) if bits else of_class

    histogram = np.zeros(len(classes) << bits, np.int64)
    for _, of_class, order in blocks():
        histogram += np.bincount(ranges(of_class, order), minlength=len(histogram))
    sums = histogram.reshape(len(classes), -1).cumsum(axis=1)
    cuts = np.zeros((len(classes), len(shares)), np.int64)
    for number, count in enumerate(sums[:, -1].tolist() if len(classes) else []):
        require_rows(count, names.get(int(classes[number]), "?"), shares)
        cuts[number] = np.cumsum(list(_counts(count, shares).values()))
    # The range of the last row of each split, and the place of that row in it
    where = np.array([np.searchsorted(*pair) for pair in zip(sums, cuts, strict=True)], np.int64).reshape(cuts.shape)
    places = cuts - np.take_along_axis(np.pad(sums, ((0, 0), (1, 0))), where, axis=1) - 1
    cut_ranges = where + (np.arange(len(classes)) << bits)[:, None]
    wanted = np.zeros(len(histogram), bool)
    wanted[cut_ranges] = True
    found = []
    for positions, of_class, order in blocks():
        inside = wanted[ranges(of_class, order)]
        columns = ranges(of_class, order), order, positions
        found.append(np.stack([values[inside].astype(np.uint64) for values in columns]))
    near = np.concatenate([np.zeros((3, 0), np.uint64), *found], axis=1)
    near = near[:, np.lexsort((near[2], near[1], near[0]))]
    last = near[:, np.searchsorted(near[0], cut_ranges.astype(np.uint64)) + places]
    split_of = np.array([SPLITS.index(name) for name in (*shares, "train")], np.uint8)
    result = np.zeros(len(keys), np.uint8)
    for positions, of_class, order in blocks():
        behind = np.zeros(len(positions), np.int64)
        for number in range(len(shares)):
            bound, position = last[1, of_class, number], last[2, of_class, number].astype(np.int64)
            behind += (order > bound) | ((order == bound) & (positions > position))
        result[positions] = split_of[behind]
    return result


def _different(values: NDArray[np.uint64], among: NDArray[np.bool_] | None) -> NDArray[np.uint64]:
    """Return the different values, ascending."""
    different = np.zeros(0, np.uint64)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        different = np.union1d(different, values[block] if among is None else values[block][among[block]])
    return different


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
