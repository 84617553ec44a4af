"""Texts cut into the units that a summary may be made of: lines, or sentences where there is but one line."""

from __future__ import annotations

import re
from typing import Literal

Units = Literal["lines", "sentences"]

_CLOSING, _OPENING = "\"'\u201d\u2019)\\]", "\"'\u201c\u2018(\\["
_SENTENCE_END = re.compile(
    rf"(?<=[.!?\u2026])(?P<closing>[{_CLOSING}]*)\s+(?=[{_OPENING}]*[A-Z0-9\u00c0-\u00de#`])|(?<=\u3002)|\n\s*\n"
)


def unit_spans(text: str, units: Units) -> list[tuple[int, int]]:
    """Where each unit begins and ends in `text`, white space around it left out; units without a letter are none."""
    if units == "lines":
        pieces = [(match.start(), match.end()) for match in re.finditer(r"[^\n]+", text)]
    else:
        ends = [max(match.start(), match.end("closing")) for match in _SENTENCE_END.finditer(text)]
        pieces = list(zip([0, *ends], [*ends, len(text)], strict=True))
    found = []
    for start, end in pieces:
        piece = text[start:end]
        left = start + len(piece) - len(piece.lstrip())
        if any(character.isalnum() for character in piece):
            found.append((left, left + len(piece.strip())))
    return found


def unit_texts(text: str, units: Units) -> list[str]:
    """The units themselves, each on one line; the whole text where it has none."""
    found = [" ".join(text[start:end].split()) for start, end in unit_spans(text, units)]
    return found or [" ".join(text.split())]
