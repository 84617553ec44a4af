"""Split texts into words, for classical baselines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from textmill.config.sections.prepare import WordsConfig
from textmill.errors import UserError

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_MANY = 100


def word_splitter(config: WordsConfig) -> Callable[[Sequence[str]], list[str]]:
    """Return a function that splits texts into words, joined by spaces, without stop words.

    Raises:
        UserError: There are no stop words for the language.
    """
    split = _jieba_words if config.segmenter == "jieba" else _WORD.findall
    stop_words = _stop_words(config.stop_words) if config.stop_words else None

    def words(texts: Sequence[str]) -> list[str]:
        if stop_words is None:
            if config.segmenter == "whitespace" and len(texts) >= _MANY:
                return _many_words(texts)
            return [" ".join(split(text)) for text in texts]
        return [" ".join(word for word in split(text) if word.casefold() not in stop_words) for text in texts]

    return words


def _many_words(texts: Sequence[str]) -> list[str]:
    """Return the words of each text, joined by spaces; those of all ASCII texts are separated at once."""
    import numpy as np

    result = [" ".join(_WORD.findall(text)) if not text.isascii() else "" for text in texts]
    simple = [position for position, text in enumerate(texts) if text.isascii()]
    chosen = [texts[position] for position in simple]
    codes = np.frombuffer("".join(["\0", *chosen, "\0"]).encode("ascii"), np.uint8)
    ends = 1 + np.cumsum(np.fromiter(map(len, chosen), np.int64, len(chosen)))
    begins = np.append(1, ends)
    part = np.array([bool(_WORD.fullmatch(chr(code))) for code in range(128)])[codes]
    kept = part.copy()
    signs = np.flatnonzero(codes == ord("'"))
    signs = signs[~np.isin(signs, begins) & ~np.isin(signs + 1, begins)]
    kept[signs] = part[signs - 1] & part[signs + 1]
    starts = kept.copy()
    starts[1:] &= ~kept[:-1]
    starts[begins[:-1]] = kept[begins[:-1]]
    places = np.flatnonzero(starts)
    owners = np.searchsorted(begins, places, side="right")
    spaces = places[1:][owners[1:] == owners[:-1]] - 1
    codes = np.where(kept, codes, np.uint8(ord(" ")))
    kept[spaces] = True
    words = np.compress(kept, codes).tobytes().decode("ascii")
    offsets = np.append(0, np.cumsum(kept))[begins].tolist()
    for position, (start, end) in zip(simple, pairwise(offsets), strict=True):
        result[position] = words[start:end]
    return result


def _jieba_words(text: str) -> Iterable[str]:
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    return (word for word in jieba.cut(text) if _WORD.search(word))


def _stop_words(language: str) -> frozenset[str]:
    import stopwordsiso

    if not stopwordsiso.has_lang(language):
        known = ", ".join(sorted(stopwordsiso.langs()))
        fix = f"Choose one of {known}"
        raise UserError(f"no stop words for {language!r}", where="prepare.words.stop_words", fix=fix)
    return frozenset(stopwordsiso.stopwords(language))
