"""Interpolated Kneser-Ney n-gram models over token ids (Kneser & Ney 1995; Chen & Goodman 1999).

p(w | h) = max(c(hw) - D, 0) / c(h) + D N(h) / c(h) p(w | h'), where h' is the context without its
first token, N(h) the number of different tokens after h, and D = n1 / (n1 + 2 n2) with the numbers of
n-grams that occur once and twice. In the highest order, c counts occurrences of hw; below, the different
tokens before hw. The recursion ends at the uniform distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from textmill.config.section import Section
from textmill.metrics.baselines.options import check_options

Hashes = NDArray[np.uint64]
Order = Annotated[int, Field(ge=2, le=12)]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class Options(Section):
    """Options of the baselines, under `evaluate.baselines`.

    Attributes:
        orders: Candidate orders; validation selects one.
    """

    orders: Annotated[tuple[Order, ...], Field(min_length=1)] = (2, 3, 4)


@dataclass(frozen=True)
class _Counts:
    """Counts of one order: sorted hashes of n-grams with their counts, and of contexts with sum and number."""

    grams: Hashes
    counts: NDArray[np.float64]
    contexts: Hashes
    totals: NDArray[np.float64]
    kinds: NDArray[np.float64]
    discount: float


class KneserNey:
    """A fitted model.

    Args:
        documents: Token ids of the training documents.
        order: Length of the longest n-gram.
        vocabulary_size: Number of different tokens.
    """

    def __init__(self, documents: Sequence[Sequence[int]], order: int, vocabulary_size: int) -> None:
        self.order = order
        self._vocabulary_size = vocabulary_size
        self._orders: list[_Counts] = []
        hashes = [list(_ngram_hashes(np.asarray(document), order + 1)) for document in documents]
        for n in range(1, order):  # counts different tokens before each n-gram, from the (n + 1)-grams
            longer = np.concatenate([of[n] for of in hashes])
            first = np.unique(longer, return_index=True)[1]
            grams = np.concatenate([of[n - 1][1 : len(of[n]) + 1] for of in hashes])[first]
            prefixes = np.concatenate([_prefixes(of, n)[1 : len(of[n]) + 1] for of in hashes])[first]
            self._orders.append(_count(grams, prefixes))
        grams = np.concatenate([of[order - 1] for of in hashes])
        self._orders.append(_count(grams, np.concatenate([_prefixes(of, order) for of in hashes])))

    def negative_log_likelihoods(self, windows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Return the nats of each window's tokens but the first, shape (windows,)."""
        return np.array([-np.log(self._probabilities(np.asarray(window))).sum() for window in windows])

    def _probabilities(self, window: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probabilities of tokens 1 to the end, shape (len(window) - 1,)."""
        hashes = list(_ngram_hashes(window, self.order))
        probabilities = np.full(len(window) - 1, 1 / self._vocabulary_size)
        for n, counts in enumerate(self._orders, start=1):
            first = max(1, n - 1)  # the first target that has a context of n - 1 tokens
            if first >= len(window):
                break
            grams = hashes[n - 1][first - (n - 1) :]
            contexts = _prefixes(hashes, n)[first - (n - 1) :]
            where, known = _look_up(counts.contexts, contexts)
            total = np.where(known, counts.totals[where], 1.0)
            gram, seen = _look_up(counts.grams, grams)
            count = np.where(seen, counts.counts[gram], 0.0)
            lower = probabilities[first - 1 :]
            kinds = np.where(known, counts.kinds[where], 0.0)
            own = np.maximum(count - counts.discount, 0) / total + counts.discount * kinds / total * lower
            probabilities[first - 1 :] = np.where(known, own, lower)
        return probabilities


def fit_baselines(
    train: Sequence[Sequence[int]],
    validation: Sequence[Sequence[int]],
    vocabulary_size: int,
    options: Mapping[str, Any],
) -> dict[str, KneserNey]:
    """Fit `unigram`, and `kneser_ney` of the order that is best on validation.

    Raises:
        UserError: `options` do not fit `Options`.
    """
    checked = check_options(Options, options)
    models = [KneserNey(train, order, vocabulary_size) for order in checked.orders]
    best = min(models, key=lambda model: float(model.negative_log_likelihoods(validation).sum()))
    return {"unigram": KneserNey(train, 1, vocabulary_size), "kneser_ney": best}


def _ngram_hashes(tokens: NDArray[Any], order: int) -> Iterator[Hashes]:
    """Yield, for n = 1 to `order`, a hash of the n-gram that begins at each position."""
    single = (tokens.astype(np.uint64) + np.uint64(1)) * _MIX
    single ^= single >> np.uint64(31)
    hashes = single
    yield hashes
    for n in range(2, order + 1):
        shifted = single[n - 1 :]
        hashes = hashes[: len(shifted)] * _MULTIPLIER + shifted
        yield hashes


def _prefixes(hashes: Sequence[Hashes], n: int) -> Hashes:
    """Return the hash of each n-gram without its last token; 0 for n = 1."""
    size = len(hashes[n - 1])
    return np.zeros(size, np.uint64) if n == 1 else hashes[n - 2][:size]


def _count(grams: Hashes, prefixes: Hashes) -> _Counts:
    unique, first, counts = np.unique(grams, return_index=True, return_counts=True)
    contexts, where, kinds = np.unique(prefixes[first], return_inverse=True, return_counts=True)
    totals = np.bincount(where, weights=counts, minlength=len(contexts)).astype(float)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once and twice else 0.5
    return _Counts(unique, counts.astype(float), contexts, totals, kinds.astype(float), discount)


def _look_up(table: Hashes, keys: Hashes) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return each key's position in a sorted table, and whether it is there."""
    where = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return where, table[where] == keys
