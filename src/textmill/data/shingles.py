"""Character shingles of many texts at once: their sets, an order by rarity, and exact Jaccard similarities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_BASE = np.uint32(0x01000193)
_HASH_BITS = np.uint64(32)
_MOST = 4095
"""Counts above are equally frequent."""
_MIX, _FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x9E3779B97F4A7C15)
MARKS = 512
_ROUNDING = 1e-9
_CHARACTERS_AT_ONCE = 500_000


def normalise(text: str) -> str:
    """Return the text without differences of case and white space; duplicates are compared in this form."""
    return " ".join(text.casefold().split())


def normalise_all(texts: Sequence[str]) -> list[str]:
    """Return `normalise` of each text; all at once if a space is their only white space, and no two are in a row."""
    folded = "\0".join(["", *texts, ""]).casefold()
    result = folded.split("\0")[1:-1]
    spaced = any(pair in folded for pair in ("  ", "\0 ", " \0"))
    if spaced or len(result) != len(texts) or not folded.replace("\0", "").isprintable():
        return list(map(normalise, texts))
    return result


def shingle_hashes(texts: Sequence[str], size: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Hash all runs of `size` characters.

    Returns:
        The hashes of all texts, concatenated, and the start of each text's. A text shorter than
        `size` is padded with spaces, so that each text has at least one hash.
    """
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    padded = [text.ljust(size) for text in texts] if (lengths < size).any() else texts
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.maximum(lengths, size)
    ends = np.cumsum(lengths)
    windows = len(codes) - size + 1
    if windows <= 0:
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    hashes = np.zeros(windows, np.uint32)
    for offset in range(size):
        hashes *= _BASE
        hashes += codes[offset : offset + windows]
    inside = np.ones(windows, bool)
    for offset in range(1, size):
        crossing = ends[:-1] - offset
        inside[crossing] = False
    counts = lengths - size + 1
    return finalise(hashes[inside]), np.cumsum(counts) - counts


def finalise(hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Apply the last step of MurmurHash3, a bijection that maps similar inputs to unlike hashes."""
    hashes = hashes ^ (hashes >> np.uint32(16))
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    return hashes


class ShingleCounts:
    """How often each shingle occurs, in a table of 2^24 counters that shingles share by their hash.

    Shared counters only make a shingle seem more frequent: the order by rarity needs no exact counts.
    """

    def __init__(self) -> None:
        self._table = np.zeros(1 << 24, np.uint32)

    def add(self, hashes: NDArray[np.uint32]) -> None:
        """Count shingles."""
        np.add.at(self._table, hashes >> np.uint32(8), np.uint32(1))

    def of(self, hashes: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return the count of each shingle, at least the true one."""
        counts: NDArray[np.uint32] = self._table[hashes >> np.uint32(8)]
        return counts


@dataclass(frozen=True)
class Prefixes:
    """The rarest shingles of each text, as many as the threshold needs, and what rules out most pairs.

    Attributes:
        shingles: Hashes of the shingles, shape (n,).
        rows: The text of each, shape (n,).
        leading: Whether it is needed if the other text has at least as many shingles, shape (n,).
        sizes: Number of different shingles of each text, shape (texts,).
        marks: 512 bits of each text, which each of its shingles flips one of, shape (texts, 8).
    """

    shingles: NDArray[np.uint32]
    rows: NDArray[np.int64]
    leading: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    marks: NDArray[np.uint64]


def prefixes(texts: Sequence[str], size: int, counts: ShingleCounts, threshold: float) -> Prefixes:
    """Return the prefix of each text's shingles in one order for all texts, from the rarest on.

    Two sets with a Jaccard similarity of at least t share a shingle among the first n - ceil(t n) + 1 of
    each one's n (prefix filter; Chaudhuri et al. 2006, Bayardo et al. 2007); of the smaller set the first
    n - ceil(2 t n / (1 + t)) + 1 suffice. Of templated texts these are shingles that the template lacks.
    """
    hashes, starts = shingle_hashes(texts, size)
    keys = (np.minimum(counts.of(hashes), _MOST).astype(np.uint64) << _HASH_BITS) | hashes
    sizes = np.zeros(len(starts), np.int32)
    marks = np.zeros((len(starts), MARKS // 64), np.uint64)
    parts: list[tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.bool_]]] = []
    for rows, matrix, first in _sorted_rows(keys, starts):
        position = np.cumsum(first, axis=1, dtype=np.int32)
        sizes[rows] = number = position[:, -1]
        length, leading = (
            (number - np.ceil(share * number - _ROUNDING).astype(np.int64) + 1)[:, None]
            for share in (threshold, 2 * threshold / (1 + threshold))
        )
        flips = np.arange(len(rows))[:, None] * MARKS + (matrix & np.uint64(MARKS - 1)).astype(np.int64)
        odd = np.bincount(flips[first], minlength=len(rows) * MARKS) & 1
        marks[rows] = np.packbits(odd.astype(bool)).view(np.uint64).reshape(-1, MARKS // 64)
        chosen = first & (position <= length)
        owner = rows[np.nonzero(chosen)[0]]
        parts.append((matrix[chosen].astype(np.uint32), owner, (position <= leading)[chosen]))
    shingles, owners, leads = zip(*parts, strict=True) if parts else ((), (), ())
    return Prefixes(
        np.concatenate([np.zeros(0, np.uint32), *shingles]),
        np.concatenate([np.zeros(0, np.int64), *owners]),
        np.concatenate([np.zeros(0, bool), *leads]),
        sizes,
        marks,
    )


Key = TypeVar("Key", np.uint32, np.uint64)


def _sorted_rows(
    keys: NDArray[Key], starts: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[Key], NDArray[np.bool_]]]:
    """Yield texts of about the same length, their keys as the sorted rows of a matrix, and where a key stands first.

    Short rows are sorted several times as fast as one array of all keys.
    """
    lengths = np.diff(np.append(starts, len(keys)))
    widths = _rounded(lengths)
    beyond = np.iinfo(keys.dtype).max
    for width in np.unique(widths).tolist():
        rows = np.flatnonzero(widths == width)
        columns = np.arange(width)
        inside = columns < lengths[rows, None]
        matrix = keys[np.minimum(starts[rows, None] + columns, len(keys) - 1)]
        matrix[~inside] = beyond
        matrix.sort(axis=1)
        inside[:, 1:] &= matrix[:, 1:] != matrix[:, :-1]
        yield rows, matrix, inside


def _rounded(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Round lengths up, to a multiple of eight and by an eighth at most, so that few different ones are left."""
    step = np.maximum(8, 1 << np.maximum(0, np.frexp(lengths)[1] - 4).astype(np.int64))
    rounded: NDArray[np.int64] = -(-lengths // step) * step
    return rounded


@dataclass(frozen=True)
class Signatures:
    """Hashes of parts of each text's set of shingles: near-duplicates have one in common.

    Attributes:
        keys: Hash of a part, shape (n,).
        rows: The text of each, shape (n,).
        sizes: Number of different shingles of each text, shape (texts,).
        sketches: 64 bits of each text, which each of its shingles flips one of, shape (texts,).
    """

    keys: NDArray[np.uint32]
    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]
    sketches: NDArray[np.uint64]


def signatures(texts: Sequence[str], size: int, threshold: float) -> Signatures:
    """Return the signatures of texts, computed in batches.

    Two sets that differ in d shingles have an equal part if both are divided by the hash into d + 1 parts
    ("PartEnum"; Arasu et al. 2006). How many differ at most follows from the threshold and a class of sizes;
    a text is divided once for its own class, and once for the class of those smaller than it.
    """
    parts = [(some.start, _signatures(texts[some], size, threshold)) for some in batches(texts)]
    return Signatures(
        np.concatenate([np.zeros(0, np.uint32), *(part.keys for _, part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(start + part.rows for start, part in parts)]),
        np.concatenate([np.zeros(0, np.int32), *(part.sizes for _, part in parts)]),
        np.concatenate([np.zeros(0, np.uint64), *(part.sketches for _, part in parts)]),
    )


def _signatures(texts: Sequence[str], size: int, threshold: float) -> Signatures:
    hashes, starts = shingle_hashes(texts, size)
    sizes = np.zeros(len(starts), np.int64)
    of_rows, of_shingles = [np.zeros(0, np.int64)], [np.zeros(0, np.uint32)]
    for rows, matrix, first in _sorted_rows(hashes, starts):
        sizes[rows] = first.sum(axis=1)
        of_rows.append(rows)
        of_shingles.append(matrix[first])
    rows, shingles = np.concatenate(of_rows), np.concatenate(of_shingles).astype(np.uint64)
    number = sizes[rows]
    sketches = np.zeros(len(starts), np.uint64)
    if len(rows):
        sketches[rows] = np.bitwise_xor.reduceat(np.uint64(1) << (shingles & np.uint64(63)), np.cumsum(number) - number)
    values = shingles * _MIX
    values ^= values >> np.uint64(29)
    bounds, divisions = _size_classes(threshold, 1 << int(sizes.max(initial=1)).bit_length())
    of_class = np.searchsorted(bounds, number, side="right") - 1
    keys, owners = [], []
    for lower in (0, 1):
        division = np.where(of_class >= lower, divisions[of_class - lower], 0)
        begins = np.cumsum(division) - division
        divided = division > 0
        inside = slice(None) if divided.all() else np.repeat(divided, number)
        part = (shingles[inside] * np.repeat(division, number)[inside].astype(np.uint64)) >> _HASH_BITS
        part += np.repeat(begins, number)[inside].astype(np.uint64)
        sums = np.zeros(int(division.sum()), np.uint64)
        changes = np.flatnonzero(np.append(True, part[1:] != part[:-1])) if len(part) else np.zeros(0, np.int64)
        if len(part):  # the shingles of a text are sorted, so that its parts are runs
            sums[part[changes]] = np.add.reduceat(values[inside], changes)
        index = np.arange(len(sums)) - np.repeat(begins, division)
        salts = np.repeat(of_class - lower, division) * (1 << 24) + index
        sums = (sums + salts.astype(np.uint64) * _FACTOR) * _MIX
        sums ^= sums >> np.uint64(31)
        keys.append((sums * _FACTOR >> _HASH_BITS).astype(np.uint32))
        owners.append(np.repeat(rows, division))
    return Signatures(np.concatenate(keys), np.concatenate(owners), sizes.astype(np.int32), sketches)


@cache
def _size_classes(threshold: float, largest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the least size of each class, and into how many parts its sets and those of the next class are divided.

    A set that reaches the threshold with a smaller one is of the same class or the next.
    """
    bounds = [1]
    while bounds[-1] <= largest:
        bounds.append(int(bounds[-1] / threshold + _ROUNDING) + 1)
    most = (np.array(bounds[1:]) - 1) * (1 - threshold) / threshold
    return np.array(bounds[:-1]), np.floor(most + _ROUNDING).astype(np.int64) + 1


def sketches_allow(
    sizes: tuple[NDArray[np.int32], NDArray[np.int32]],
    sketches: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    threshold: float,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return a mask of the pairs that can reach the threshold, and how many shingles may differ; shape (pairs,).

    Two texts have at least as many different shingles as different bits (Sandes et al. 2020).
    """
    both = sizes[0].astype(np.int64) + sizes[1]
    least = np.ceil(threshold / (1 + threshold) * both - _ROUNDING)
    most = both - 2 * least
    different = np.bitwise_count(sketches[0] ^ sketches[1])
    return (np.minimum(*sizes) >= least) & (different <= most), most


def may_be_similar(
    sizes: tuple[NDArray[np.int32], NDArray[np.int32]],
    first_marks: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    marks: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
    threshold: float,
) -> NDArray[np.bool_]:
    """Return a mask of the pairs that can reach the threshold.

    Args:
        sizes: Sizes of both texts of each pair, shape (pairs,).
        first_marks: The first 64 marks of texts, of which the first and the second of a pair are taken, shape (texts,).
        marks: All marks of these texts, which few pairs need, shape (texts, 8).
        rows: The texts of each pair, shape (pairs,).
        threshold: Minimum Jaccard similarity.
    """
    possible, most = sketches_allow(sizes, (first_marks[0][rows[0]], first_marks[1][rows[1]]), threshold)
    left = np.flatnonzero(possible)
    different = np.bitwise_count(marks[0][rows[0][left]] ^ marks[1][rows[1][left]]).sum(axis=1, dtype=np.int64)
    possible[:] = False
    possible[left[different <= most[left]]] = True
    return possible


def jaccard(first: NDArray[np.intp], second: NDArray[np.intp], texts: Sequence[str], size: int) -> NDArray[np.float64]:
    """Return the Jaccard similarity of the shingle sets of `texts[first[i]]` and `texts[second[i]]`."""
    from scipy.sparse import csr_array

    hashes, starts = shingle_hashes(texts, size)
    owner = np.repeat(np.arange(len(starts), dtype=np.uint64), np.diff(np.append(starts, len(hashes))))
    keys = (owner << _HASH_BITS) | hashes
    keys.sort()  # several times as fast as `np.unique`, which builds a table
    keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
    sizes = np.bincount((keys >> _HASH_BITS).astype(np.intp), minlength=len(starts))
    bounds, indices = np.append(0, np.cumsum(sizes)), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    sets = csr_array((np.ones(len(keys), np.int32), indices, bounds), shape=(len(starts), 1 << 32))
    shared = np.asarray((sets[first] * sets[second]).sum(axis=1)).ravel()
    result: NDArray[np.float64] = shared / (sizes[first] + sizes[second] - shared)
    return result


def batches(texts: Sequence[str]) -> Iterator[slice]:
    """Yield slices of texts with few enough characters to hash at once, one text at least."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    start = 0
    while start < len(texts):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _CHARACTERS_AT_ONCE, side="right")))
        yield slice(start, end)
        start = end
