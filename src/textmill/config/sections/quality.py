"""Options of the quality filters of `prepare`; each filter is off unless it is set."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from textmill.config.section import Section
from textmill.config.types import Fraction

Count = Annotated[int, Field(ge=0)]
Shares = dict[Annotated[int, Field(ge=2, le=20)], Fraction]
"""Words of a passage -> limit of its share of the characters."""


class GopherRepetitionConfig(Section):
    """Largest shares of repetitions (Rae et al. 2021, table A1).

    Attributes:
        top_n_grams: Words of a passage -> share of characters in the most frequent passage.
        duplicate_n_grams: Words of a passage -> share of characters in passages that occur before.
    """

    duplicate_lines: Fraction | None = 0.3
    duplicate_paragraphs: Fraction | None = 0.3
    duplicate_line_characters: Fraction | None = 0.2
    duplicate_paragraph_characters: Fraction | None = 0.2
    top_n_grams: Shares = {2: 0.2, 3: 0.18, 4: 0.16}
    duplicate_n_grams: Shares = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}


class GopherQualityConfig(Section):
    """Limits of words, symbols and lines (Rae et al. 2021, appendix A1).

    Attributes:
        max_symbols: Hash signs, or ellipses, a word.
        max_bullet_lines: Share of lines that begin with a bullet.
        max_ellipsis_lines: Share of lines that end in an ellipsis.
        min_alphabetic_words: Share of words with a letter.
        min_stop_words: Different words of `stop_words` in a text.
    """

    min_words: Annotated[int, Field(ge=1)] = 50
    max_words: Annotated[int, Field(ge=1)] = 100_000
    min_word_length: Annotated[float, Field(ge=0)] = 3
    max_word_length: Annotated[float, Field(gt=0)] = 10
    max_symbols: Annotated[float, Field(ge=0)] = 0.1
    max_bullet_lines: Fraction = 0.9
    max_ellipsis_lines: Fraction = 0.3
    min_alphabetic_words: Fraction = 0.8
    min_stop_words: Count = 2
    stop_words: list[str] = ["the", "be", "to", "of", "and", "that", "have", "with"]

    @field_validator("stop_words")
    @classmethod
    def _each_has_letters(cls, words: list[str]) -> list[str]:
        if not all(word.isalpha() for word in words) or len(set(words)) < len(words):
            raise ValueError("each must be a different word of letters")
        return words


class C4Config(Section):
    """Lines and texts to remove (Raffel et al. 2020, section 2.2).

    Attributes:
        remove_citations: Remove `[1]`, `[edit]` and `[citation needed]`.
        terminal_punctuation: Remove lines that do not end in punctuation.
        min_sentences: Drop texts with fewer sentences in the lines that stay.
        max_word_length: Remove lines with a longer word.
        lorem_ipsum: Drop texts with this phrase.
        javascript: Remove lines that mention it.
        curly_brackets: Drop texts with a `{`.
        policies: Remove lines about cookies, privacy and terms of use.
    """

    remove_citations: bool = True
    terminal_punctuation: bool = True
    min_sentences: Count = 5
    min_words_per_line: Count = 3
    max_word_length: Annotated[int, Field(ge=1)] = 1000
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_brackets: bool = True
    policies: bool = True


class FineWebConfig(Section):
    """Limits of lines (Penedo et al. 2024).

    Attributes:
        min_punctuated_lines: Share of lines that end in punctuation.
        max_short_lines: Share of lines with at most `short_line` characters.
        max_repeated_characters: Share of characters in lines that occur before.
        max_line_breaks: Line breaks a word.
    """

    min_punctuated_lines: Fraction = 0.12
    max_short_lines: Fraction = 0.67
    short_line: Count = 30
    max_repeated_characters: Fraction = 0.01
    max_line_breaks: Annotated[float, Field(ge=0)] = 0.3


class QualityConfig(Section):
    """Filters that drop texts; applied in this order. `{}` sets a filter with its published limits."""

    gopher_repetition: GopherRepetitionConfig | None = None
    gopher_quality: GopherQualityConfig | None = None
    c4: C4Config | None = None
    fineweb: FineWebConfig | None = None
