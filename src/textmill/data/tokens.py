"""Cut many texts into words and symbols at once, for the quality filters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from textmill.data.passages import character_kinds, powers

_SEPARATOR, _PART, _WORD, _APOSTROPHE, _SYMBOL = range(5)
_BASE = 0xD6E8FEB86659FD93
_INVERSE = pow(_BASE, -1, 1 << 64)
_HASH_BITS = np.uint64(44)


@cache
def _kinds() -> NDArray[np.uint8]:
    """Return the kind of every character, as `passages`, but what is no letter, number or white space is a symbol."""
    kinds = character_kinds().copy()
    kinds[kinds == _SEPARATOR] = _SYMBOL
    spaces = [code for code in range(0x3001) if chr(code).isspace()]
    kinds[[*spaces, 0]] = _SEPARATOR
    kinds[ord("_")] = _PART
    return kinds


class Tokens:
    """The words and symbols of texts: a word keeps an inner apostrophe; each symbol is a token.

    Attributes:
        texts: The text of each token, ascending, shape (tokens,).
        counts: Number of tokens of each text, shape (texts,).
        lengths: Characters of each token, shape (tokens,).
        codes: The characters of all tokens, without white space, shape (characters,).
        starts: The first character of each token, and the number of characters, shape (tokens + 1,).
    """

    def __init__(self, texts: Sequence[str]) -> None:
        codes = np.frombuffer("\0".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kinds()[codes]
        apostrophes = np.flatnonzero(kinds == _APOSTROPHE)
        kinds = np.append(kinds, np.uint8(_SEPARATOR))
        inner = (kinds[apostrophes - 1] == _PART) & (kinds[apostrophes + 1] == _PART)
        kinds[apostrophes] = np.where(inner, _PART, _SYMBOL)
        kinds = kinds[:-1]
        new = kinds != _PART
        new[1:] |= kinds[:-1] != _PART
        new[:1] = True
        ends = np.cumsum(np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts)))
        inside = np.flatnonzero(kinds != _SEPARATOR)
        first = new[inside]
        self.codes: NDArray[np.uint32] = codes[inside]
        self.starts = np.append(np.flatnonzero(first), len(inside))
        self.lengths: NDArray[np.int64] = np.diff(self.starts)
        where = inside[first]
        bounds = np.searchsorted(where, np.append(0, ends))
        self.counts: NDArray[np.int64] = np.diff(bounds)
        self.texts: NDArray[np.int64] = np.repeat(np.arange(len(texts)), self.counts)
        self._where = where - np.append(0, ends)[self.texts]
        self._bounds = bounds

    def of(self, text: int, whole: str) -> list[str]:
        """Return the tokens of one text."""
        span = slice(self._bounds[text], self._bounds[text + 1])
        starts, lengths = self._where[span].tolist(), self.lengths[span].tolist()
        return [whole[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    def per_text(self, values: NDArray[np.generic]) -> NDArray[np.int64]:
        """Return the sum of a value of each token over each text."""
        sums = np.append(0, np.cumsum(values, dtype=np.int64))
        result: NDArray[np.int64] = sums[self._bounds[1:]] - sums[self._bounds[:-1]]
        return result

    def any_in(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return for each token whether one of its characters is in a mask over `codes`."""
        sums = np.append(0, np.cumsum(mask, dtype=np.int64))
        result: NDArray[np.bool_] = sums[self.starts[1:]] > sums[self.starts[:-1]]
        return result

    def hashes(self) -> NDArray[np.uint64]:
        """Return the sum of each character times a power, up to each character: the hash of all runs of tokens."""
        values = (self.codes.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
        values ^= values >> np.uint64(29)
        values *= powers(_BASE, len(values))
        return np.append(np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64))

    def repetitions(
        self, sums: NDArray[np.uint64], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Count equal runs of tokens; two runs are equal if their joined characters are, and rarely if they are not.

        Args:
            sums: The result of `hashes`.
            length: Tokens of a run.

        Returns:
            For each text: its runs that an earlier one equals, the count of its most frequent run, and the
            characters of its longest run; each of shape (texts,).
        """
        texts = len(self.counts)
        repeated, most, longest = (np.zeros(texts, np.int64) for _ in range(3))
        windows = len(self.texts) - length + 1
        if windows <= 0:
            return repeated, most, longest
        chosen = np.flatnonzero(self.texts[:windows] == self.texts[length - 1 :])
        if not len(chosen):
            return repeated, most, longest
        owner, start, end = self.texts[chosen], self.starts[chosen], self.starts[chosen + length]
        hashes = (sums[end] - sums[start]) * powers(_INVERSE, len(sums))[start]
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(0x94D049BB133111EB)
        keys = (owner.astype(np.uint64) << _HASH_BITS) | (hashes >> (np.uint64(64) - _HASH_BITS))
        keys.sort()
        begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        sizes = np.diff(np.append(begins, len(keys)))
        texts_of = (keys[begins] >> _HASH_BITS).astype(np.int64)
        first = np.flatnonzero(np.append(True, texts_of[1:] != texts_of[:-1]))
        there = texts_of[first]
        repeated[there] = np.add.reduceat(sizes - 1, first)
        most[there] = np.maximum.reduceat(sizes, first)
        changes = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
        longest[there] = np.maximum.reduceat(end - start, changes)
        return repeated, most, longest
