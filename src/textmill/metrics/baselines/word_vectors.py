"""Texts as bags of weighted words, and the similarity of two texts by their common words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.metrics.baselines.options import WORD, no_words


def stems(text: str) -> list[str]:
    """Return the stems of a text's words (Porter 2001, "Snowball"), without English stop words."""
    import Stemmer
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = [word for word in re.findall(WORD, text.casefold()) if word not in ENGLISH_STOP_WORDS]
    stemmed: list[str] = Stemmer.Stemmer("english").stemWords(words)
    return stemmed


class TfidfVectors:
    """TF-IDF vectors of length 1 over stems.

    Args:
        texts: Texts whose document frequencies weight the stems.

    Raises:
        UserError: The texts have no words.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(analyzer=stems, sublinear_tf=True, dtype=np.float32)
        try:
            self._vectorizer.fit(texts)
        except ValueError as error:
            raise no_words(error, "Map a column of texts with words") from error

    def cosines(self, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosine of each row of `first` with the same row of `second`, shape (n,)."""
        product = self._vectorizer.transform(first).multiply(self._vectorizer.transform(second))
        return np.asarray(product.sum(axis=1), float).ravel()

    def all_cosines(self, first: Sequence[str], second: Sequence[str]) -> NDArray[Any]:
        """Return the cosine of each row of `first` with each row of `second`, shape (n, m)."""
        product = self._vectorizer.transform(first) @ self._vectorizer.transform(second).T
        return np.asarray(product.todense())


def overlaps(first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
    """Return the common share of all stems of two texts (Jaccard 1912), shape (n,); 0 for texts without stems."""
    pairs = ((set(stems(one)), set(stems(other))) for one, other in zip(first, second, strict=True))
    return np.array([len(one & other) / max(1, len(one | other)) for one, other in pairs])
