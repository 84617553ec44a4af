"""Record which rows a model was made with, in at most 64 bytes a row, and find them among other rows.

A record has no text. It keeps, of hashes with a key of its own, 48 bits of each text, 16 bytes of its MinHash
sketch (Broder 1997), and 36 bits of up to 12 passages. Someone who guesses a text can confirm it; nobody can read
a text from the record, or link the rows of two records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pandas.util import hash_array

from textmill.data.duplicates import join_ranges
from textmill.data.passages import BOILERPLATE, SHORTEST, WORDS, Words
from textmill.data.shingles import batches, finalise, normalise, shingle_hashes
from textmill.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT, _SEVERAL = "textmill seen 1", "textmill seen 2"
"""Of a record of one version, and of one with rows of versions that it started from, each with its own key."""
_TEXT_BITS, _PASSAGE_BITS = 48, 36
_COMPONENTS = 16
_SIMILAR = 11
"""Equal components of two sketches that count as near-duplicates: at a similarity of 0.9, 299 of 300 have them."""
_SHINGLE = 5
_PASSAGES = 12
_SHORT_ROW = SHORTEST + _PASSAGES - 1
"""Words of the longest row of which all runs of six words are kept."""
_PAIRS_AT_ONCE = 2_000_000
_ROWS_AT_ONCE = 10_000
_MIX = np.uint64(0x94D049BB133111EB)

Texts = Sequence[Sequence[str]]
"""The text columns of rows: for each column, the text of each row."""


def write_seen(path: Path, tables: Sequence[pa.Table], key: str, earlier: Path | None = None) -> None:
    """Write the record of the rows of some tables, which have the text columns only.

    Args:
        path: The file to write.
        tables: The training and the validation split.
        key: Text from which the key of the hashes is derived, such as the digests of the splits.
        earlier: Record of the version that the training started from. Its rows are added, without those of the tables.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    keyed = _Keyed(hashlib.sha256(key.encode()).digest()[:16])
    chunks = [keyed.of_rows(columns) for columns in _chunks(tables)]
    texts = np.concatenate([np.zeros(0, np.int64), *(chunk[0] for chunk in chunks)])
    sketches = np.concatenate([np.zeros((0, _COMPONENTS), np.uint8), *(chunk[1] for chunk in chunks)])
    order = np.argsort(texts, kind="stable")
    passages = np.unique(np.concatenate([np.zeros(0, np.int64), *(chunk[2] for chunk in chunks)]))
    parts = [_Part(keyed, texts[order], sketches[order], passages)]
    parts += [rest for part in (_read(earlier) if earlier else ()) if len((rest := part.without(tables)).texts)]
    table = pa.table(
        {
            "texts": pa.array([part.texts for part in parts], pa.list_(pa.int64())),
            "sketches": pa.array([part.sketches.tobytes() for part in parts], pa.large_binary()),
            "passages": pa.array([part.passages for part in parts], pa.list_(pa.int64())),
        },
        metadata={
            "format": _FORMAT if len(parts) == 1 else _SEVERAL,
            "key": " ".join(part.keyed.key.hex() for part in parts),
        },
    )
    names = table.schema.names
    encodings = {"sketches": "PLAIN"} | {f"{name}.list.element": "DELTA_BINARY_PACKED" for name in (names[0], names[2])}
    pq.write_table(
        table, path, use_dictionary=False, column_encoding=encodings, compression="NONE", write_statistics=False
    )


def find_seen(path: Path, columns: Texts) -> NDArray[np.bool_]:
    """Return a mask of the rows that a record has: equal, near-duplicates, or with a passage in common.

    A passage is one of 13 words, or the whole of a shorter text of at least six. It is found in any row of up to
    17 words. In a longer row of n words it is found if the common run has 12 + n / 12 words. Rows of several
    texts are compared as a whole, without passages.

    Raises:
        UserError: The file is not a record.
    """
    rows = _joined(columns)
    found = np.zeros(len(rows), bool)
    for part in _read(path):
        found |= np.isin(part.keyed.texts(rows), part.texts)
        found |= _similar(part.keyed.sketches(rows), part.sketches)
        if len(columns) == 1:
            found |= part.keyed.share_passage(columns[0], part.passages)
    return found


def _read(path: Path) -> list[_Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") not in (_FORMAT.encode(), _SEVERAL.encode()):
            raise pa.ArrowInvalid("another format")
        parts = []
        for key, texts, sketches, passages in zip(metadata[b"key"].decode().split(), *table.columns, strict=True):
            numbers = np.frombuffer(sketches.as_py(), np.uint8).reshape(-1, _COMPONENTS)
            parts.append(
                _Part(_Keyed(bytes.fromhex(key)), texts.values.to_numpy(), numbers, passages.values.to_numpy())
            )
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise UserError("not a record of seen rows", where=str(path), fix="Register the version again") from error
    return parts


@dataclass(frozen=True)
class _Part:
    """The rows of one version: ascending text hashes, the sketch of each, and passages."""

    keyed: _Keyed
    texts: NDArray[np.int64]
    sketches: NDArray[np.uint8]
    passages: NDArray[np.int64]

    def without(self, tables: Sequence[pa.Table]) -> _Part:
        """Return the part without the rows of some tables, which another part has."""
        known, passages = np.zeros(0, np.int64), self.passages
        for columns in _chunks(tables):
            known = np.union1d(known, self.keyed.texts(_joined(columns)))
            passages = np.setdiff1d(passages, self.keyed.some_passages(columns))
        kept = ~np.isin(self.texts, known)
        return _Part(self.keyed, self.texts[kept], self.sketches[kept], passages)


class _Keyed:
    """Hashes with a key of 16 bytes."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        rng = np.random.default_rng(list(key))
        self._salt = rng.integers(0, 2**64, dtype=np.uint64)
        self._factors = rng.integers(0, 2**31, _COMPONENTS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._terms = rng.integers(0, 2**32, _COMPONENTS, dtype=np.uint32)

    def of_rows(self, columns: Texts) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        rows = _joined(columns)
        return self.texts(rows), self.sketches(rows), self.some_passages(columns)

    def texts(self, rows: Sequence[str]) -> NDArray[np.int64]:
        # pandas takes the key as text of 16 bytes
        hashed = hash_array(np.array(rows, object), hash_key=self.key.hex()[:16], categorize=False)
        return (hashed >> np.uint64(64 - _TEXT_BITS)).astype(np.int64)

    def sketches(self, rows: Sequence[str]) -> NDArray[np.uint8]:
        """Return the lowest byte of the smallest of 16 hashes of each text's shingles, shape (rows, 16)."""
        result = np.zeros((len(rows), _COMPONENTS), np.uint8)
        for some in batches(rows):
            hashes, starts = shingle_hashes(rows[some], _SHINGLE)
            for component, (factor, term) in enumerate(zip(self._factors, self._terms, strict=True)):
                least = np.minimum.reduceat(finalise(hashes * factor + term), starts)
                result[some, component] = (least * np.uint32(0x9E3779B1) >> np.uint32(24)).astype(np.uint8)
        return result

    def some_passages(self, columns: Texts) -> NDArray[np.int64]:
        """Return all runs of six words of short rows, and evenly spaced runs of 13 words of longer ones."""
        if len(columns) > 1:
            return np.zeros(0, np.int64)
        kept = []
        for some in batches(columns[0]):
            words = Words(columns[0][some])
            for length in (SHORTEST, WORDS):
                hashes, owner = words.runs(length)
                right = (words.counts[owner] <= _SHORT_ROW) == (length == SHORTEST)
                hashes, owner = hashes[right], owner[right]
                counts = np.bincount(owner, minlength=1)
                position = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
                step = np.maximum(counts[owner], _PASSAGES)
                chosen = position * _PASSAGES // step != (position - 1) * _PASSAGES // step
                kept.append(np.unique(self._passages(hashes[chosen])))
        return np.unique(np.concatenate([np.zeros(0, np.int64), *kept]))

    def share_passage(self, texts: Sequence[str], known: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask of the texts that have a known passage which is not boilerplate."""
        words = Words(texts)
        found = np.zeros(len(texts), bool)
        for length in (SHORTEST, WORDS):
            hashes, owner = words.runs(length)
            passages = self._passages(hashes)
            hit = np.isin(passages, known)
            pairs = np.unique(np.stack([passages[hit], owner[hit]], axis=1), axis=0)[:, 0]
            common, counts = np.unique(pairs, return_counts=True)
            hit &= ~np.isin(passages, common[counts > BOILERPLATE])
            # As many runs in a row as a passage of 13 words, or the whole of a shorter text, has
            needed = np.minimum(WORDS, words.counts[owner]) - length + 1
            found[owner[_run_lengths(hit, owner) >= needed]] = True
        return found

    def _passages(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        mixed = (hashes ^ self._salt) * _MIX
        mixed ^= mixed >> np.uint64(31)
        return (mixed * _MIX >> np.uint64(64 - _PASSAGE_BITS)).astype(np.int64)


def _run_lengths(hit: NDArray[np.bool_], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many hits of one owner end at each position; 0 where there is none."""
    position = np.arange(len(hit))
    new = np.ones(len(hit), bool)
    new[1:] = owner[1:] != owner[:-1]
    before = np.where(hit, np.where(new, position - 1, -1), position)
    return np.where(hit, position - np.maximum.accumulate(before) if len(hit) else position, 0)


def _similar(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask of our sketches that resemble one of theirs; they have two neighbouring components in common."""
    found = np.zeros(len(ours), bool)
    for first in range(0, _COMPONENTS, 2):
        codes, wanted = (
            sketches[:, first].astype(np.int64) * 256 + sketches[:, first + 1] for sketches in (theirs, ours)
        )
        order = np.argsort(codes, kind="stable")
        codes = codes[order]
        begin, end = (np.searchsorted(codes, wanted, side) for side in ("left", "right"))
        end[found] = begin[found]
        part = np.cumsum(end - begin) // _PAIRS_AT_ONCE
        for number in np.unique(part):
            rows = np.flatnonzero(part == number)
            positions, of = join_ranges(begin[rows], end[rows])
            equal = (theirs[order[positions]] == ours[rows[of]]).sum(axis=1)
            found[rows[of[equal >= _SIMILAR]]] = True
    return found


def _chunks(tables: Sequence[pa.Table]) -> Iterator[list[list[str]]]:
    for table in tables:
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            yield [column.to_pylist() for column in batch.columns]


def _joined(columns: Texts) -> list[str]:
    return [normalise("\x1f".join(values)) for values in zip(*columns, strict=True)]


def row_sketch(columns: Texts, size: int = 200) -> list[int]:
    """Return the lowest 32-bit hashes of different rows, ascending: they tell how much two sets have in common."""
    hashed = hash_array(np.array(_joined(columns), object), categorize=False) >> np.uint64(32)
    return [int(value) for value in np.unique(hashed)[:size]]


def shared_part(ours: Iterable[int], theirs: Sequence[int], size: int = 200) -> float:
    """Return the estimated part of our rows that they have too, from the results of `row_sketch`.

    Theirs may be a far larger set, of which no hash is low enough to compare: then it is 1, the careful answer.
    """
    limit = theirs[-1] if len(theirs) >= size else 2**32
    known = set(theirs)
    compared = [value in known for value in ours if value <= limit]
    return sum(compared) / len(compared) if compared else 1.0
