"""Find duplicate rows: exact by hash, near by an exact join on the Jaccard similarity of shingles."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pandas.util import hash_array

from textmill.data.shingles import (
    MARKS,
    Prefixes,
    ShingleCounts,
    Signatures,
    batches,
    jaccard,
    may_be_similar,
    prefixes,
    shingle_hashes,
    sketches_allow,
)

_ROWS_AT_ONCE = 1_000_000
"""Rows sorted at once; more are sorted in several passes, to bound memory."""
_CHARACTERS_AT_ONCE = 4_000_000
_ROWS_A_PART = 100_000
_PAIRS_AT_ONCE = 200_000
_PAIRS_COLLECTED = 200_000
_LARGE_GROUP = 10_000
_NEIGHBOURS = 1_000
"""Rows of similar size with which a row of a larger group is compared."""
_SHINGLE_BITS, _ROW_BITS = np.uint64(32), np.uint64(1)
"""An entry of 64 bits has the shingle on top, then the row, and in the last bit whether the shingle is leading."""
_ROW = np.uint64(0x7FFF_FFFF)
_ROW_OF_SIGNATURE = np.uint64(0xFFFF_FFFF)
_FILES = 128
_LARGE_SIGNATURE = 50
"""Rows with the same signature that are compared with each other."""
SIGNATURES_FROM = 0.85
"""Threshold below which the parts of sets are so small that most rows have one in common."""

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
        positions = np.concatenate([np.zeros(0, np.int64), *_of_part(values, among, part, parts)])
        order = positions[np.argsort(values[positions], kind="stable")]
        same = values[order[1:]] == values[order[:-1]]
        inside = np.zeros(len(order), bool)
        inside[1:] |= same
        inside[:-1] |= same
        begins = np.ones(len(order), bool)
        begins[1:] = ~same
        yield order[inside], np.cumsum(begins)[inside]


def _of_part(
    values: NDArray[np.uint64], among: NDArray[np.bool_] | None, part: int, parts: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the positions of the values of a part, block by block."""
    for start in range(0, len(values), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        chosen = values[block] % np.uint64(parts) == part
        yield start + np.flatnonzero(chosen if among is None else chosen & among[block])


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


class NearIndex:
    """The rarest shingles of all rows, in files, to find near-duplicates with bounded memory.

    Args:
        folder: A folder for the files.
        rows: Number of rows.
        counts: Counts of the shingles of all texts.
        threshold: Minimum Jaccard similarity of near-duplicates.
    """

    def __init__(self, folder: Path, rows: int, counts: ShingleCounts, threshold: float) -> None:
        self.threshold = threshold
        self.sizes = np.zeros(rows, np.int32)
        self.first_marks = np.zeros(rows, np.uint64)
        self.marks = np.memmap(folder / "marks.near", np.uint64, "w+", shape=(max(1, rows), MARKS // 64))
        self._counts = counts
        parts = max(1, -(-rows // _ROWS_A_PART))
        self._bounds = (np.arange(1, parts, dtype=np.uint64) << np.uint64(32)) // np.uint64(parts) << _SHINGLE_BITS
        self._paths = [folder / f"{part:03d}.near" for part in range(parts)]

    def add(self, parts: Iterable[tuple[NDArray[np.int64], Prefixes]]) -> None:
        """Add rows by the numbers of the rows and the prefixes of their normalised texts, batch by batch."""
        collected = []
        for of_row, found in parts:
            self.sizes[of_row], self.first_marks[of_row], self.marks[of_row] = (
                found.sizes,
                found.marks[:, 0],
                found.marks,
            )
            shared = self._counts.of(found.shingles) > 1
            entries = found.shingles[shared].astype(np.uint64) << _SHINGLE_BITS
            entries |= of_row[found.rows[shared]].astype(np.uint64) << _ROW_BITS
            collected.append(entries | found.leading[shared])
        if not collected:
            return
        entries = np.concatenate(collected)
        entries.sort()
        _append(self._paths, entries, self._bounds)
        self.forget()

    def parts(self) -> Iterator[Entries]:
        """Yield shingles with their rows, in parts that have all rows of a shingle, in order of size."""
        by_size = np.argsort(self.sizes, kind="stable").astype(np.uint32)
        place = np.empty_like(by_size)
        place[by_size] = np.arange(len(by_size), dtype=np.uint32)
        for path in self._paths:
            entries = np.fromfile(path, np.uint64) if path.exists() else np.zeros(0, np.uint64)
            rows = place[(entries >> _ROW_BITS) & _ROW].astype(np.uint64)
            entries &= ~(_ROW << _ROW_BITS)
            entries |= rows << _ROW_BITS
            entries.sort()
            rows = by_size[(entries >> _ROW_BITS) & _ROW]
            yield Entries((entries >> _SHINGLE_BITS).astype(np.uint32), rows, (entries & _ROW_BITS).astype(bool))

    def forget(self) -> None:
        """Let the system take back the memory of the marks that were used; they stay in their file."""
        self.marks._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Entries:
    """Shingles, ascending, the row that has each, and whether it is leading there; all of shape (entries,)."""

    shingles: NDArray[np.uint32]
    rows: NDArray[np.uint32]
    leading: NDArray[np.bool_]


class SignatureFiles:
    """The signatures of all rows, in files by ranges of their keys, so that few are in memory at once."""

    def __init__(self, folder: Path) -> None:
        self._bounds = np.arange(1, _FILES, dtype=np.uint64) * np.uint64(2**64 // _FILES)
        self._paths = [folder / f"{part:03d}.signatures" for part in range(_FILES)]

    def add(self, first: int, some: Signatures) -> None:
        """Add the signatures of rows that are numbered from `first` on."""
        entries = (some.keys.astype(np.uint64) << _SHINGLE_BITS) | (some.rows + first).astype(np.uint64)
        entries.sort()
        _append(self._paths, entries, self._bounds)

    def parts(self, among: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the rows of `among` with a signature that another one has, and the number of each one's group."""
        for path in self._paths:
            entries = np.fromfile(path, np.uint64) if path.exists() else np.zeros(0, np.uint64)
            entries = entries[among[entries & _ROW_OF_SIGNATURE]]
            entries.sort()
            keys = (entries >> _SHINGLE_BITS).astype(np.uint32)
            same = keys[1:] == keys[:-1]
            shared = np.zeros(len(keys), bool)
            shared[1:] |= same
            shared[:-1] |= same
            new = np.append(True, ~same)[: len(keys)][shared]
            yield (entries[shared] & _ROW_OF_SIGNATURE).astype(np.int64), np.cumsum(new) - 1


def _append(paths: Sequence[Path], entries: NDArray[np.uint64], bounds: NDArray[np.uint64]) -> None:
    """Append ascending entries to the files of their ranges."""
    for path, some in zip(paths, np.split(entries, np.searchsorted(entries, bounds)), strict=True):
        if len(some):
            with path.open("ab") as file:
                file.write(some.tobytes())


@dataclass(frozen=True)
class NearRows:
    """What is known of all rows to find near-duplicates.

    Attributes:
        among: Mask of the rows to compare, shape (rows,).
        sizes: Number of different shingles of each row, shape (rows,).
        sketches: The sketch of each row, shape (rows,).
        files: The signatures; None where the threshold is too low for them.
        index: Returns the index of the rows at ascending positions: by their place among these.
    """

    among: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    sketches: NDArray[np.uint64]
    files: SignatureFiles | None
    index: Callable[[NDArray[np.int64]], NearIndex]


def find_near(
    duplicates: Duplicates, rows: NearRows, rank: NDArray[np.uint8], texts: Texts, threshold: float, shingle: int
) -> None:
    """Add near-duplicates to the result of `find_exact`: one row of each connected component stays.

    All pairs that reach the threshold are found and compared by the exact similarity of their shingles. Only
    of a rare shingle in more than 10,000 rows each row is compared with 1,000 rows of similar size.

    Args:
        duplicates: Result of `find_exact`.
        rows: The rows to compare, exact duplicates not among them.
        rank: Rank of each row's split.
        texts: Returns normalised texts.
        threshold: Minimum Jaccard similarity of near-duplicates.
        shingle: Characters of a shingle.
    """
    component = np.arange(len(rank), dtype=np.int32)

    def compare(candidates: Iterable[NDArray[np.int64]]) -> None:
        collected: list[NDArray[np.int64]] = []
        for pairs in chain(candidates, [None]):
            if pairs is not None:
                collected.append(pairs)
            if collected and (pairs is None or sum(map(len, collected)) >= _PAIRS_COLLECTED):
                every = np.concatenate(collected)
                roots = _roots(component, every)
                every = np.unique(np.sort(every[roots[:, 0] != roots[:, 1]], axis=1), axis=0)
                _unite(component, every[_similar(every, texts, threshold, shingle)])
                collected.clear()

    # Rows of which a part equals that of many others are boilerplate: only rare shingles tell them apart
    alike = rows.among
    if rows.files is not None:
        alike = np.zeros_like(rows.among)
        parts = rows.files.parts(rows.among)
        compare(pairs for part in parts for pairs in _of_signature(*part, rows, threshold, alike))
    positions = np.flatnonzero(alike)
    if len(positions):
        index = rows.index(positions)
        for entries in index.parts():
            for find in (_joining, _all_pairs):
                compare(positions[pairs] for pairs in find(entries, index))
            index.forget()
    joined = np.flatnonzero(component != np.arange(len(rank), dtype=np.int32))
    members = np.union1d(joined, _roots(component, joined))
    order = members[np.lexsort((members, rank[members], component[members]))]
    first, keeper = _keepers(order, component[order].astype(np.int64))
    duplicates.near[order[~first]] = True
    _count_across(duplicates, rank, order[~first], keeper[~first])


def _keepers(positions: NDArray[np.int64], groups: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return a mask of the first position of each group, and for each position its group's first."""
    first = np.ones(len(groups), bool)
    first[1:] = groups[1:] != groups[:-1]
    return first, positions[first][np.cumsum(first) - 1]


def _of_signature(
    members: NDArray[np.int64], groups: NDArray[np.int64], rows: NearRows, threshold: float, alike: NDArray[np.bool_]
) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of rows that share a signature and can reach the threshold, each of shape (pairs, 2).

    Of a large group, yield each row with the next one only, and mark its rows in `alike`.
    """
    lengths = np.bincount(groups) if len(groups) else np.zeros(0, np.int64)
    alike[members[lengths[groups] > _LARGE_SIGNATURE]] = True

    def possible(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        one, two = members[first], members[second]
        both = (rows.sizes[one], rows.sizes[two]), (rows.sketches[one], rows.sketches[two])
        return np.stack([one, two], axis=1)[sketches_allow(*both, threshold)[0]]

    left = np.arange(len(members))
    for distance in range(1, _LARGE_SIGNATURE):
        left = left[left + distance < len(members)]
        left = left[groups[left] == groups[left + distance]]
        if not len(left):
            return
        yield possible(left, left + distance)
        if distance == 1:
            left = left[lengths[groups[left]] <= _LARGE_SIGNATURE]


def _joining(entries: Entries, index: NearIndex) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of each row with the first and the previous row of its shingle, each of shape (pairs, 2).

    These join the rows of a large group of duplicates, whose other pairs are then not compared.
    """
    begins = _begins(entries)
    others = np.delete(np.arange(len(entries.rows)), begins)
    for start in range(0, len(others), _PAIRS_AT_ONCE):
        some = others[start : start + _PAIRS_AT_ONCE]
        yield _possible(entries, index, begins[np.searchsorted(begins, some) - 1], some)
        yield _possible(entries, index, some - 1, some)


def _all_pairs(entries: Entries, index: NearIndex) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of rows that share a rare shingle and can reach the threshold, each of shape (pairs, 2)."""
    sizes = index.sizes[entries.rows]
    begins = _begins(entries)
    lengths = np.diff(np.append(begins, len(sizes)))
    group = np.repeat(np.arange(len(begins)), lengths)
    every = np.arange(len(sizes))
    # Of a shingle's rows, in order of size, those up to this position are not too large for a row
    wide = np.int64(1) << 32
    largest = np.floor(sizes / index.threshold + 1e-9).astype(np.int64)
    last = np.searchsorted(group * wide + sizes, group * wide + largest, side="right")
    number = np.minimum(last - every - 1, np.where(lengths[group] > _LARGE_GROUP, _NEIGHBOURS, len(sizes)))
    number[~entries.leading] = 0
    ends = np.cumsum(number)
    start = 0
    while start < len(sizes):
        base = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, base + _PAIRS_AT_ONCE)))
        first = np.repeat(every[start:end], number[start:end])
        inside = np.arange(len(first)) - np.repeat(ends[start:end] - number[start:end] - base, number[start:end])
        yield _possible(entries, index, first, first + 1 + inside)
        start = end


def _begins(entries: Entries) -> NDArray[np.int64]:
    """Return the first position of each shingle."""
    new = np.ones(len(entries.shingles), bool)
    new[1:] = entries.shingles[1:] != entries.shingles[:-1]
    return np.flatnonzero(new)


def _possible(
    entries: Entries, index: NearIndex, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the pairs of rows, of those at two positions, that can reach the threshold."""
    one, two = entries.rows[first].astype(np.int64), entries.rows[second].astype(np.int64)
    sizes, first_marks, marks = index.sizes, index.first_marks, index.marks.view(np.ndarray)
    firsts, both = (first_marks, first_marks), (marks, marks)
    close = may_be_similar((sizes[one], sizes[two]), firsts, both, (one, two), index.threshold)
    return np.stack([one[close], two[close]], axis=1)


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


def _roots(component: NDArray[np.int32], rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the root of each row's component: `component` has for each row another one of it, for a root itself."""
    roots = component[rows]
    while True:
        above = component[roots]
        if (above == roots).all():
            component[rows] = roots  # a shorter way the next time
            return roots
        roots = above


def _unite(component: NDArray[np.int32], edges: NDArray[np.int64]) -> None:
    """Merge the components that the edges connect, in place: the lowest root is that of all."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(edges):
        return
    names, index = np.unique(_roots(component, edges), return_inverse=True)
    index = index.reshape(edges.shape)
    graph = coo_array((np.ones(len(index), np.int8), (index[:, 0], index[:, 1])), shape=(len(names), len(names)))
    count, labels = connected_components(graph, directed=False)
    lowest = np.full(count, np.iinfo(names.dtype).max, names.dtype)
    np.minimum.at(lowest, labels, names)
    component[names] = lowest[labels]


def _count_across(
    duplicates: Duplicates, rank: NDArray[np.uint8], removed: NDArray[np.int64], keeper: NDArray[np.int64]
) -> None:
    own, other = rank[removed].astype(int), rank[keeper].astype(int)
    pairs, counts = np.unique(np.stack([own, other], axis=1), axis=0, return_counts=True)
    for (one, two), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        if one != two:
            duplicates.across[one, two] = duplicates.across.get((one, two), 0) + count


def find_repetitions(texts: Sequence[str], threshold: float, shingle: int) -> NDArray[np.bool_]:
    """Return a mask of the rows that an earlier row equals or nearly equals.

    Args:
        texts: Normalised texts, few enough for memory.
        threshold: Minimum Jaccard similarity of near-duplicates.
        shingle: Characters of a shingle.
    """
    rank = np.zeros(len(texts), np.uint8)
    keys = hash_array(np.array(texts, object), categorize=False)
    duplicates = find_exact(keys, keys, rank, np.ones(len(texts), bool))
    counts = ShingleCounts()

    def index(positions: NDArray[np.int64]) -> NearIndex:
        chosen = _picker(texts)(positions)
        parts = list(batches(chosen))
        for some in parts:
            counts.add(shingle_hashes(chosen[some], shingle)[0])
        made = NearIndex(Path(folder), len(positions), counts, threshold)
        numbers = np.arange(len(positions))
        made.add((numbers[some], prefixes(chosen[some], shingle, counts, threshold)) for some in parts)
        return made

    with TemporaryDirectory() as folder:
        different = NearRows(~duplicates.exact, np.zeros(0, np.int32), np.zeros(0, np.uint64), None, index)
        find_near(duplicates, different, rank, _picker(texts), threshold, shingle)
    return duplicates.exact | duplicates.near


def find_similar(
    texts: Sequence[Sequence[str]], others: Iterable[Sequence[Sequence[str]]], threshold: float, shingle: int
) -> NDArray[np.bool_]:
    """Return a mask of the rows that are near-duplicates of one of `others`.

    Args:
        texts: Normalised texts, column by column; few enough for memory.
        others: The same columns of any number of rows, in chunks.
        threshold: Minimum Jaccard similarity of near-duplicates, in each column.
        shingle: Characters of a shingle.
    """
    own = _joined(texts)
    counts = ShingleCounts()  # every order of the shingles finds all pairs; this one is known before `others` are read
    for some in batches(own):
        counts.add(shingle_hashes(own[some], shingle)[0])
    found = np.zeros(len(own), bool)
    parts = [(some.start, prefixes(own[some], shingle, counts, threshold)) for some in batches(own)]
    hashes = np.concatenate([np.zeros(0, np.uint32), *(part.shingles for _, part in parts)])
    rows = np.concatenate([np.zeros(0, np.int64), *(start + part.rows for start, part in parts)])
    sizes = np.concatenate([np.zeros(0, np.int32), *(part.sizes for _, part in parts)])
    marks = np.concatenate([np.zeros((0, MARKS // 64), np.uint64), *(part.marks for _, part in parts)])
    order = np.argsort(hashes, kind="stable")
    hashes, rows = hashes[order], rows[order]
    for columns in others:
        chunk = _joined(columns)
        for some in batches(chunk):
            theirs = prefixes(chunk[some], shingle, counts, threshold)
            first, last = (np.searchsorted(hashes, theirs.shingles, side) for side in ("left", "right"))
            positions, of = join_ranges(first, last)
            pairs = np.stack([rows[positions], theirs.rows[of]], axis=1)
            pairs = np.unique(pairs[~found[pairs[:, 0]]], axis=0)
            ours, their = pairs.T
            both = sizes[ours], theirs.sizes[their]
            of_both = marks, theirs.marks
            firsts = marks[:, 0], theirs.marks[:, 0]
            pairs = pairs[may_be_similar(both, firsts, of_both, (ours, their), threshold)]
            for one, other in ((own, chunk), *(zip(texts, columns, strict=True) if len(texts) > 1 else ())):
                numbered = pairs + np.array([0, len(one)])
                pairs = pairs[_similar(numbered, _picker([*one, *other[some]]), threshold, shingle)]
            found[pairs[:, 0]] = True
    return found


def join_ranges(first: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all positions from `first[i]` up to `last[i]`, and the `i` of each."""
    number = last - first
    start = np.repeat(first - (np.cumsum(number) - number), number)
    return start + np.arange(len(start)), np.repeat(np.arange(len(number)), number)


def _joined(columns: Sequence[Sequence[str]]) -> list[str]:
    return ["\x1f".join(values) for values in zip(*columns, strict=True)]


def _picker(texts: Sequence[str]) -> Texts:
    return lambda rows: [texts[row] for row in rows]
