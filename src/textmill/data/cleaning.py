"""Repair and normalise texts; reject those of unwanted length or language."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from textmill.config.sections.prepare import CleaningConfig
from textmill.errors import UserError

_ROUNDS = 5


class Cleaner:
    """Clean texts as configured; cleaning is idempotent. Raises a `UserError` for an unknown language."""

    def __init__(self, config: CleaningConfig) -> None:
        self.config = config
        self._step = _step(config)
        self._language = language_detector(config.languages) if config.languages else None
        self._shortest = config.min_characters
        self._longest = config.max_characters if self._language is None else 0

    def clean(self, text: str) -> str:
        """Return the text repaired (ftfy), normalised and stripped."""
        # ftfy does not change such a text; these tests are 20 times faster than ftfy
        if text.isascii() and text.isprintable() and "&" not in text:
            return text.strip()
        for _ in range(_ROUNDS):
            cleaned = self._step(text).strip()
            if cleaned == text:
                break
            text = cleaned
        return text

    def simple(self, text: str) -> bool:
        """Return whether a raw text is surely clean and without a problem, by the fastest test; most texts are."""
        return (
            text.isascii()
            and self._shortest <= len(text) <= self._longest
            and text.isprintable()
            and "&" not in text
            and text[0] != " " != text[-1]
        )

    def problem(self, text: str) -> str | None:
        """Return why a cleaned text is rejected, or None."""
        config = self.config
        if len(text) < config.min_characters:
            return f"is shorter than {config.min_characters} characters" if text else "is empty"
        if len(text) > config.max_characters:
            return self.too_long(text)
        if self._language is not None:
            language = self._language(text)
            if language not in (config.languages or ()):
                return f"is in the language {language or 'unknown'}"
        return None

    def too_long(self, text: str) -> str | None:
        """Return why a raw text is too long to be cleaned, or None."""
        if len(text) > self.config.max_characters:
            return f"is longer than {self.config.max_characters} characters"
        return None


def _step(config: CleaningConfig) -> Callable[[str], str]:
    """Return the function that repairs or only normalises a text."""
    if config.repair:
        import ftfy

        options = ftfy.TextFixerConfig(normalization=config.normal_form, explain=False)
        return partial(ftfy.fix_text, config=options)
    return partial(unicodedata.normalize, config.normal_form) if config.normal_form else str


def language_detector(languages: Sequence[str]) -> Callable[[str], str | None]:
    """Return a function that maps a text to its ISO 639-1 code; lingua's high-accuracy models would take 1 GB."""
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    for code in languages:
        if not hasattr(IsoCode639_1, code.upper()):
            fix = "Use ISO 639-1 codes such as en"
            raise UserError(f"unknown language {code!r}", where="prepare.cleaning.languages", fix=fix)
    detector: Any = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()

    def detect(text: str) -> str | None:
        language = detector.detect_language_of(text)
        return None if language is None else str(language.iso_code_639_1.name).lower()

    return detect
