"""Cut texts into the units of an extractive summary: lines or sentences."""

from __future__ import annotations

import re
from typing import Literal

Units = Literal["lines", "sentences"]

_CLOSING, _OPENING = "\"'\u201d\u2019)\\]", "\"'\u201c\u2018(\\["
_SENTENCE_END = re.compile(
    rf"(?<=[.!?\u2026])(?P<closing>[{_CLOSING}]*)\s+(?=[{_OPENING}]*[A-Z0-9\u00c0-\u00de#`])|(?<=\u3002)|\n\s*\n"
)


def unit_spans(text: str, units: Units) -> list[tuple[int, int]]:
    """Return start and end of each unit, without surrounding white space; a unit has at least one letter or digit."""
    if units == "lines":
        pieces = [(match.start(), match.end()) for match in re.finditer(r"[^\n]+", text)]
    else:
        ends = [max(match.start(), match.end("closing")) for match in _SENTENCE_END.finditer(text)]
        pieces = list(zip([0, *ends], [*ends, len(text)], strict=True))
    spans = []
    for start, end in pieces:
        piece = text[start:end]
        left = start + len(piece) - len(piece.lstrip())
        if any(character.isalnum() for character in piece):
            spans.append((left, left + len(piece.strip())))
    return spans


def unit_texts(text: str, units: Units) -> list[str]:
    """Return the units, each on one line; a text without units is one unit."""
    cut = [" ".join(text[start:end].split()) for start, end in unit_spans(text, units)]
    return cut or [" ".join(text.split())]


def sentence_count(line: str) -> int:
    """Return the number of sentences of a line; white space around it does not count."""
    return len([end for end in _SENTENCE_END.finditer(line) if end.end() < len(line)]) + 1 if line else 0
