"""The most similar of many texts, by chrF (Popović 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from textmill.config.section import Section
from textmill.metrics.baselines.options import check_options

_ROWS_AT_ONCE = 256


class NearestTextOptions(Section):
    """Options of the search.

    Attributes:
        candidates: Number of texts with the highest TF-IDF cosine of character n-grams; chrF ranks only these.
        max_features: Largest number of different character n-grams in TF-IDF.
    """

    candidates: Annotated[int, Field(ge=1)] = 20
    max_features: Annotated[int, Field(ge=100)] = 200_000


class NearestText:
    """Finds the most similar of `texts`.

    Raises:
        UserError: `options` do not fit `NearestTextOptions`.
    """

    def __init__(self, texts: Sequence[str], options: Mapping[str, Any]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._options = check_options(NearestTextOptions, options)
        self._texts = list(texts)
        self._vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), max_features=self._options.max_features, dtype=np.float32
        )
        self._known = self._vectorizer.fit_transform(self._texts).T.tocsr()

    def nearest(self, texts: Sequence[str]) -> list[int]:
        """Return, for each text, the position of the most similar known one."""
        from sacrebleu.metrics.chrf import CHRF

        chrf = CHRF()
        positions = []
        count = min(self._options.candidates, len(self._texts))
        for start in range(0, len(texts), _ROWS_AT_ONCE):
            part = list(texts[start : start + _ROWS_AT_ONCE])
            cosines = (self._vectorizer.transform(part) @ self._known).toarray()
            for text, row in zip(part, cosines, strict=True):
                candidates = np.sort(np.argpartition(-row, count - 1)[:count]).tolist()
                scores = [chrf.sentence_score(self._texts[number], [text]).score for number in candidates]
                positions.append(candidates[int(np.argmax(scores))])
        return positions
