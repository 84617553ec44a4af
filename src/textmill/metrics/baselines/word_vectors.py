"""Texts as bags of weighted words: what two of them have in common without knowing what any word means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.errors import UserError

_WORD = r"(?u)\b\w+\b"


def stems(text: str) -> list[str]:
    """The stems of a text's words (Porter 2001, "Snowball"), without English stop words."""
    import Stemmer
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = [word for word in re.findall(_WORD, text.casefold()) if word not in ENGLISH_STOP_WORDS]
    found: list[str] = Stemmer.Stemmer("english").stemWords(words)
    return found


class TfidfVectors:
    """TF-IDF vectors of length 1 over stems.

    Args:
        texts: Whose document frequencies weight the stems.

    Raises:
        UserError: They hold no word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(analyzer=stems, sublinear_tf=True, dtype=np.float32)
        try:
            self._vectorizer.fit(texts)
        except ValueError as error:  # scikit-learn's way to say that nothing is left
            raise UserError(
                f"the baseline finds no words in the training split ({error})", fix="Look at the texts"
            ) from error

    def cosines(self, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        """Of the rows of both, shape (n,)."""
        product = self._vectorizer.transform(first).multiply(self._vectorizer.transform(second))
        return np.asarray(product.sum(axis=1), float).ravel()

    def all_cosines(self, first: Sequence[str], second: Sequence[str]) -> NDArray[Any]:
        """Of each of `first` with each of `second`, shape (n, m)."""
        product = self._vectorizer.transform(first) @ self._vectorizer.transform(second).T
        return np.asarray(product.todense())


def overlaps(first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
    """The share of all stems of two texts that both have (Jaccard 1912), shape (n,); 0 where there is none."""
    pairs = ((set(stems(one)), set(stems(other))) for one, other in zip(first, second, strict=True))
    return np.array([len(one & other) / max(1, len(one | other)) for one, other in pairs])
