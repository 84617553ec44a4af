"""Find texts that share a passage with an evaluation text: 13 words in a row, or the whole of a shorter text.

13 words are those of Brown et al. (2020, appendix C). A passage that more than ten different evaluation texts
have is boilerplate, such as a system prompt, and does not count; nor do texts of fewer than six words, which
are idioms (three for rows of several texts, since each of them must be shared).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pandas.util import hash_array

from textmill.data.distinct_words import distinct_words
from textmill.data.duplicates import join_ranges
from textmill.data.parallel import Engine
from textmill.data.shingles import batches, normalise

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_FIRST = np.uint64(0x94D049BB133111EB)
"""Added to the first character of a word, so that `a bc` and `ab c` differ."""
_TAG = re.compile(r"</?[a-z][^<>]{0,300}>|<!--.{0,1000}?-->", re.IGNORECASE | re.DOTALL)
_SEPARATOR, _PART, _WORD, _APOSTROPHE = range(4)

WORDS = 13
SHORTEST = 6
_SHORTEST_OF_SEVERAL = 3
BOILERPLATE = 10
_FILTER_BITS = 29


@cache
def character_kinds() -> NDArray[np.uint8]:
    """Return the kind of every character: part of a word, a word by itself, ignored, or none of these.

    Scripts without spaces between words (Chinese, Japanese, Thai, ...) count each character as a word.
    """
    kinds = np.zeros(0x110000, np.uint8)
    for code in [*range(0x3400), *range(0xA4D0, 0xAC00), *range(0xD7B0, 0x20000), *range(0xE0000, 0xE0200)]:
        if unicodedata.category(chr(code))[0] in "LMN":
            kinds[code] = _PART
    kinds[0xAC00:0xD7A4] = _PART  # Hangul
    for first, last in ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF)):
        kinds[first : last + 1] = np.where(kinds[first : last + 1] == _PART, _WORD, kinds[first : last + 1])
    for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)):
        kinds[first : last + 1] = _WORD
    kinds[[0x27, 0x2019]] = _APOSTROPHE
    return kinds


class Words:
    """The words of texts, without case, punctuation, HTML and full-width letters, as hashes of their runs.

    Attributes:
        texts: The text of each word, ascending, shape (words,).
        counts: Number of words of each text, shape (texts,).
    """

    def __init__(self, texts: Sequence[str]) -> None:
        whole = "".join(texts)
        if whole.isascii() and "&" not in whole and "<" not in whole:
            folded, whole = texts, whole.lower()
        else:
            folded = [_plain(text) for text in texts]
            whole = "".join(folded)
        codes = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), np.uint32)
        ends = np.cumsum(np.fromiter(map(len, folded), np.int64, len(folded)))
        kinds = character_kinds()[codes]
        if len(apostrophes := np.flatnonzero(kinds == _APOSTROPHE)):
            codes, kinds = np.delete(codes, apostrophes), np.delete(kinds, apostrophes)
            ends -= np.searchsorted(apostrophes, ends)
        new = kinds == _WORD
        new[1:] |= kinds[1:] != kinds[:-1]
        begins = np.append(0, ends)[: len(ends)]
        new[begins[begins < len(new)]] = True
        inside = kinds != _SEPARATOR
        new &= inside
        self.counts: NDArray[np.int64] = np.diff(np.searchsorted(np.flatnonzero(new), np.append(0, ends)))
        self.texts: NDArray[np.int64] = np.repeat(np.arange(len(texts)), self.counts)
        codes, new = np.compress(inside, codes), np.compress(inside, new)
        first = np.flatnonzero(new)
        self._starts = np.append(first, len(codes))
        # The hash of a run is a sum over its characters, which is computed once for each different word
        word, words = distinct_words(codes, self._starts)
        hashes = _word_hashes(words)[word] * powers(_BASE, len(codes) + 1)[first]
        self._sums = np.append(np.zeros(1, np.uint64), np.cumsum(hashes, dtype=np.uint64))

    def runs(self, length: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return a hash of all runs of `length` words within a text, and the text of each."""
        count = len(self.texts) - length + 1
        if count <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        first = np.flatnonzero(self.texts[:count] == self.texts[length - 1 :])
        # Sum of value * base^position; dividing by the power of the start makes it independent of the position
        sums = self._sums[first + length] - self._sums[first]
        hashes = sums * powers(_INVERSE, int(self._starts[-1]) + 1)[self._starts[first]]
        hashes ^= hashes >> np.uint64(32)
        return hashes * _MIX + np.uint64(length), self.texts[first]


def _word_hashes(words: pa.Array) -> NDArray[np.uint64]:
    """Return the sum of each word's characters, mixed, times a power of their position."""
    _, offsets, data = words.buffers()
    starts = np.frombuffer(offsets, np.int64, len(words) + 1) // 4
    if not len(words):
        return np.zeros(0, np.uint64)
    values = (np.frombuffer(data, np.uint32, starts[-1]).astype(np.uint64) + np.uint64(1)) * _MIX
    values ^= values >> np.uint64(29)
    values[starts[:-1]] += _FIRST
    lengths = np.diff(starts)
    values *= powers(_BASE, int(lengths.max()))[np.arange(len(values)) - np.repeat(starts[:-1], lengths)]
    return np.add.reduceat(values, starts[:-1])


def _plain(text: str) -> str:
    """Return a text without case, HTML tags and entities, and in Unicode's form NFKC."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


Chunks = Callable[[], Iterable[tuple[NDArray[np.int64], list[list[str]]]]]
"""Yields numbers of rows and, for each text column, their texts; ascending, and the same at each call."""
_Chunk = tuple[NDArray[np.int64], list[list[str]]]


def find_shared(
    held_out: Chunks, others: Chunks, words: int = WORDS, engine: Engine | None = None
) -> NDArray[np.int64]:
    """Return pairs of an evaluation row and another row that shares a passage with it, shape (pairs, 2), ascending.

    Rows of several texts share a passage in each of them, or have equal ones. Memory holds neither texts
    nor passages of all rows: a filter of at most 64 MB, and the passages that pass it.

    Args:
        held_out: The evaluation rows.
        others: The rows to search.
        words: Words of a passage.
        engine: Computes the chunks; None computes them in this thread.
    """
    engine = engine or Engine(workers=1)
    search = PassageSearch(held_out, words, engine)
    return search.pairs(held_out, others, find_passages([search], others, engine)[0])


class PassageSearch:
    """The passages of evaluation rows, as a filter; see `find_shared`."""

    def __init__(self, held_out: Chunks, words: int, engine: Engine) -> None:
        self.column, self._shortest = _most_different(held_out)
        self._words, self._engine = words, engine
        self.filter = _Filter(sum(len(text) for _, texts in held_out() for text in texts[self.column]))
        lengths: set[int] = set()

        def of_chunk(chunk: _Chunk) -> list[tuple[int, NDArray[np.uint64]]]:
            return [(length, hashes) for _, length, hashes, _ in self._passages(chunk[1][self.column])]

        for found in engine.map(of_chunk, held_out()):
            for length, hashes in found:
                lengths.add(length)
                self.filter.add(hashes)
        self.lengths = sorted(lengths)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}  # stays in this process

    def pairs(self, held_out: Chunks, others: Chunks, theirs: Hits) -> NDArray[np.int64]:
        """Return the pairs of an evaluation row and another row, given the passages of the others that pass the filter.

        `held_out` may lack rows of those that the filter has.
        """
        known = np.unique(theirs.hashes)
        if not len(known):
            return np.zeros((0, 2), np.int64)

        def of_chunk(chunk: _Chunk) -> Hits:
            rows, texts = chunk
            of_text = _text_hashes(texts[self.column])
            return Hits.joined(
                [
                    Hits(hashes[hit], rows[some][owner[hit]], of_text[some][owner[hit]])
                    for some, _, hashes, owner in self._passages(texts[self.column])
                    for hit in [_among(hashes, known)]
                ]
            )

        ours = Hits.joined(list(self._engine.map(of_chunk, held_out()))).without_boilerplate()
        pairs = _join(ours, theirs)
        return pairs if not len(pairs) else _share_all(pairs, held_out, others, self.column, self._words)

    def _passages(self, texts: Sequence[str]) -> Iterator[tuple[slice, int, NDArray[np.uint64], NDArray[np.int64]]]:
        for some in batches(texts):
            for length, hashes, owner in _passages(Words(texts[some]), self._words, self._shortest):
                yield some, length, hashes, owner


def find_passages(searches: Sequence[PassageSearch], others: Chunks, engine: Engine) -> list[Hits]:
    """Return for each search the passages of other rows that pass its filter; the rows are read once."""

    def of_chunk(chunk: _Chunk) -> list[Hits]:
        rows, texts = chunk
        found: list[list[Hits]] = [[] for _ in searches]
        for column in {search.column for search in searches}:
            for some in batches(texts[column]):
                words = Words(texts[column][some])
                for search, hits in zip(searches, found, strict=True):
                    for length in search.lengths if search.column == column else ():
                        hashes, owner = words.runs(length)
                        hit = np.flatnonzero(search.filter.may_have(hashes))
                        hits.append(Hits(hashes[hit], rows[some][owner[hit]]))
        return [Hits.joined(hits) for hits in found]

    parts = list(engine.map(of_chunk, others()))
    return [Hits.joined([part[number] for part in parts]) for number in range(len(searches))]


class _Filter:
    """A set of hashes that may seem to have some others too: two bits for each hash (Bloom 1970)."""

    def __init__(self, characters: int) -> None:
        bits = min(_FILTER_BITS, max(16, (4 * characters).bit_length()))
        self._shifts = np.uint64(64 - bits), np.uint64(max(0, 64 - 2 * bits))
        self._mask = np.uint64((1 << bits) - 1)
        self._bytes = np.zeros(1 << (bits - 3), np.uint8)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        for shift in self._shifts:
            place = (hashes >> shift) & self._mask
            np.bitwise_or.at(self._bytes, place >> np.uint64(3), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8))

    def may_have(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        found = np.ones(len(hashes), bool)
        for shift in self._shifts:
            left = np.flatnonzero(found)
            place = (hashes[left] >> shift) & self._mask
            found[left] = self._bytes[place >> np.uint64(3)] >> (place & np.uint64(7)).astype(np.uint8) & np.uint8(1)
        return found


@dataclass(frozen=True)
class Hits:
    """Passages, the row of each, and a hash of the row's text."""

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int64]
    texts: NDArray[np.uint64] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Hits]) -> Hits:
        """Return the hits of all parts."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *(part.hashes for part in parts)])
        rows = np.concatenate([np.zeros(0, np.int64), *(part.rows for part in parts)])
        texts = np.concatenate([np.zeros(0, np.uint64), *(part.texts for part in parts if part.texts is not None)])
        return cls(hashes, rows, texts)

    def of(self, rows: NDArray[np.bool_]) -> Hits:
        """Return the hits in rows of a mask."""
        kept = rows[self.rows]
        return Hits(self.hashes[kept], self.rows[kept])

    def without_boilerplate(self) -> Hits:
        """Return the hits without passages that many different texts have."""
        assert self.texts is not None, "only evaluation rows have boilerplate"
        different = np.unique(np.stack([self.hashes, self.texts], axis=1), axis=0)[:, 0]
        hashes, counts = np.unique(different, return_counts=True)
        kept = ~np.isin(self.hashes, hashes[counts > BOILERPLATE])
        return Hits(self.hashes[kept], self.rows[kept])


def _passages(words: Words, length: int, shortest: int) -> Iterator[tuple[int, NDArray[np.uint64], NDArray[np.int64]]]:
    """Yield the passages of evaluation texts: lengths, hashes, and the text of each."""
    hashes, owner = words.runs(length)
    if len(hashes):
        yield length, hashes, owner
    for shorter in range(shortest, length):
        if (words.counts == shorter).any():
            hashes, owner = words.runs(shorter)
            whole = words.counts[owner] == shorter
            yield shorter, hashes[whole], owner[whole]


def _most_different(chunks: Chunks) -> tuple[int, int]:
    """Return the column with the most different texts, and the words of the shortest text that counts."""
    seen: list[list[NDArray[np.uint64]]] = []
    for _, texts in chunks():
        if len(texts) == 1:
            return 0, SHORTEST
        seen.append([_text_hashes(column) for column in texts])
    counts = [len(np.unique(np.concatenate(column))) for column in zip(*seen, strict=True)]
    return (int(np.argmax(counts)) if counts else 0), _SHORTEST_OF_SEVERAL


def _among(hashes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return a mask of the hashes that the ascending `known` has; `np.isin` would sort it again at each call."""
    position = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    found: NDArray[np.bool_] = known[position] == hashes
    return found


def _text_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    hashes: NDArray[np.uint64] = hash_array(np.array([normalise(text) for text in texts], object), categorize=False)
    return hashes


def _join(ours: Hits, theirs: Hits) -> NDArray[np.int64]:
    """Return the pairs of rows that have a passage in common."""
    order = np.argsort(ours.hashes, kind="stable")
    hashes = ours.hashes[order]
    first, last = (np.searchsorted(hashes, theirs.hashes, side) for side in ("left", "right"))
    mine, other = join_ranges(first, last)
    return np.unique(np.stack([ours.rows[order][mine], theirs.rows[other]], axis=1), axis=0)


def _share_all(
    pairs: NDArray[np.int64], held_out: Chunks, others: Chunks, column: int, words: int
) -> NDArray[np.int64]:
    """Return the pairs whose other texts share a passage too."""
    if len(next(iter(held_out()))[1]) == 1:
        return pairs
    mine, theirs = (
        _texts_of(np.unique(rows), chunks) for rows, chunks in zip(pairs.T, (held_out, others), strict=True)
    )
    kept = [
        all(
            _shares(one, other, words)
            for number, (one, other) in enumerate(zip(mine[first], theirs[second], strict=True))
            if number != column
        )
        for first, second in pairs.tolist()
    ]
    chosen: NDArray[np.int64] = pairs[np.array(kept, bool)]
    return chosen


def _texts_of(wanted: NDArray[np.int64], chunks: Chunks) -> dict[int, tuple[str, ...]]:
    found = {}
    for rows, texts in chunks():
        for position in np.flatnonzero(np.isin(rows, wanted)).tolist():
            found[int(rows[position])] = tuple(column[position] for column in texts)
    return found


def _shares(text: str, other: str, words: int) -> bool:
    """Return whether a text shares a passage with an evaluation text, or all of one of any length."""
    if normalise(text) == normalise(other):
        return True
    ours, theirs = Words([text]), Words([other])
    length = min(words, int(ours.counts[0]))
    return length > 0 and bool(np.isin(ours.runs(length)[0], theirs.runs(length)[0]).any())


_tables: dict[int, NDArray[np.uint64]] = {}


def powers(base: int, count: int) -> NDArray[np.uint64]:
    """Return the first powers of a number modulo 2**64."""
    table = _tables.get(base, np.ones(1, np.uint64))
    if len(table) < count:
        table = np.full(1 << (count - 1).bit_length(), base, np.uint64)
        table[0] = 1
        table = _tables[base] = np.cumprod(table, dtype=np.uint64)
    return table[:count]
