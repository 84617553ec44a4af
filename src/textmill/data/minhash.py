"""MinHash signatures (Broder 1997) of many texts at once, equal to those of datasketch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

_BLOCK = 1 << 15
"""Shingles hashed at once; they fit into the processor's cache."""
_RECALL = 0.97
"""Minimum share of the pairs at the threshold that the bands find."""
_BASE = np.uint32(0x01000193)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> str:
    """Return the text without differences of case and white space; duplicates are compared in this form."""
    return " ".join(text.casefold().split())


def shingle_hashes(texts: Sequence[str], size: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Hash all runs of `size` characters.

    Returns:
        The hashes of all texts, concatenated, and the start of each text's. A text shorter than
        `size` is padded with spaces, so that each text has at least one hash.
    """
    padded = [text.ljust(size) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
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


@lru_cache
def permutations(count: int) -> NDArray[np.uint32]:
    """Return datasketch's permutations, `a * h + b` modulo 2**32; shape (2, count), the odd `a` first."""
    return np.asarray(MinHash(count, seed=1, scheme="affine32").permutations, np.uint32)


def signatures(texts: Sequence[str], size: int, count: int) -> NDArray[np.uint32]:
    """Return MinHash signatures, shape (texts, count).

    Equal to `datasketch.MinHash.update_batch` over each text's shingle hashes. That needs a Python
    object for each text, and seconds for each ten thousand; this handles all texts at once.
    """
    hashes, starts = shingle_hashes(texts, size)
    mixed = finalise(hashes)
    result = np.empty((count, len(starts)), np.uint32)
    factors, terms = permutations(count)
    first = 0
    while first < len(starts):
        begin = starts[first]
        last = max(first + 1, int(np.searchsorted(starts, begin + _BLOCK)))
        end = starts[last] if last < len(starts) else len(mixed)
        block, bounds = mixed[begin:end], starts[first:last] - begin
        permuted = np.empty_like(block)
        for row in range(count):
            np.multiply(block, factors[row], out=permuted)
            permuted += terms[row]
            np.minimum.reduceat(permuted, bounds, out=result[row, first:last])
        first = last
    return np.ascontiguousarray(result.T)


def band_shape(threshold: float, count: int) -> tuple[int, int]:
    """Return the number of bands and the rows of each: the most rows that still reach `_RECALL`.

    Two texts of similarity s agree in a band of r rows with probability s**r (Leskovec et al.,
    "Mining of Massive Datasets", 3.4). More rows mean fewer false candidates to compare.
    """
    for rows in range(count, 1, -1):
        bands = count // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return count, 1


def band_hashes(signature: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """Return one 64-bit hash for each band, shape (bands, texts)."""
    parts = signature[:, : bands * rows].reshape(len(signature), bands, rows)
    hashes = np.zeros(parts.shape[:2], np.uint64)
    for row in range(rows):
        hashes = (hashes ^ parts[:, :, row]) * _MIX
        hashes ^= hashes >> np.uint64(29)
    return np.ascontiguousarray(hashes.T)


def jaccard(
    first: Sequence[int] | NDArray[np.intp], second: Sequence[int] | NDArray[np.intp], texts: Sequence[str], size: int
) -> NDArray[np.float64]:
    """Return the Jaccard similarity of the shingle sets of `texts[first[i]]` and `texts[second[i]]`."""
    hashes, starts = shingle_hashes(texts, size)
    bounds = np.append(starts, len(hashes))
    pairs = np.arange(len(first), dtype=np.uint64)
    left, left_pairs = _gather(hashes, bounds, np.asarray(first))
    right, right_pairs = _gather(hashes, bounds, np.asarray(second))
    left_set = np.unique((pairs[left_pairs] << np.uint64(32)) | left)
    right_set = np.unique((pairs[right_pairs] << np.uint64(32)) | right)
    both = np.concatenate([left_set, right_set])
    both.sort()
    shared = np.bincount((both[1:][both[1:] == both[:-1]] >> np.uint64(32)).astype(np.intp), minlength=len(first))
    total = np.bincount((both >> np.uint64(32)).astype(np.intp), minlength=len(first))
    return shared / (total - shared)


def _gather(
    hashes: NDArray[np.uint32], bounds: NDArray[np.int64], rows: NDArray[np.intp]
) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Return the hashes of `rows`, concatenated, and for each hash its index into `rows`."""
    lengths = bounds[rows + 1] - bounds[rows]
    owner = np.repeat(np.arange(len(rows)), lengths)
    inside = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return hashes[np.repeat(bounds[rows], lengths) + inside], owner
