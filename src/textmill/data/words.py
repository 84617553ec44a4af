"""Split texts into words, for classical baselines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from textmill.config.sections.prepare import WordsConfig
from textmill.errors import UserError

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def word_splitter(config: WordsConfig) -> Callable[[Sequence[str]], list[str]]:
    """Return a function that splits texts into words, joined by spaces, without stop words.

    Raises:
        UserError: There are no stop words for the language.
    """
    split = _jieba_words if config.segmenter == "jieba" else _WORD.findall
    stop_words = _stop_words(config.stop_words) if config.stop_words else None

    def words(texts: Sequence[str]) -> list[str]:
        if stop_words is None:
            return [" ".join(split(text)) for text in texts]
        return [" ".join(word for word in split(text) if word.casefold() not in stop_words) for text in texts]

    return words


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
