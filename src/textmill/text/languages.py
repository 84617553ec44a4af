"""Check that texts are in the expected language (lingua)."""

from __future__ import annotations

from collections.abc import Sequence

from textmill.errors import UserError

_CERTAINTY = 0.95
_LEAST_CHARACTERS = 20
"""Shorter texts are not checked: their language is uncertain."""


class LanguageCheck:
    """Distinguish texts of two languages, given by ISO 639-1 codes. Raises a `UserError` for an unknown one."""

    def __init__(self, languages: Sequence[str]) -> None:
        from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

        codes = {}
        for code in languages:
            if not hasattr(IsoCode639_1, code.upper()):
                raise UserError(f"unknown language {code!r}", where="task", fix="Use ISO 639-1 codes such as en")
            codes[code] = Language.from_iso_code_639_1(getattr(IsoCode639_1, code.upper()))
        self._codes = codes
        self._detector = LanguageDetectorBuilder.from_languages(*codes.values()).build()

    def is_other(self, text: str, expected: str) -> bool:
        """Return whether a text is, with 95 % confidence, in the other language."""
        if len(text) < _LEAST_CHARACTERS:
            return False
        return bool(self._detector.compute_language_confidence(text, self._codes[expected]) < 1 - _CERTAINTY)
