"""Where each character of a cleaned text stood in the text as it was given.

Normalisation is followed exactly, character by character. What else cleaning does (mojibake,
entities, control characters) leaves most of a text as it is, so that the places where the two texts
agree again are looked for nearby; what lies between two such places belongs together. The time
grows with the length of the text only, whatever it holds; that of a shortest edit script (rapidfuzz)
grows with its square.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal

NormalForm = Literal["NFC", "NFKC"]

_ANCHOR = 4
"""Characters that must agree for two places to be taken for the same."""
_REACH = 64
"""Characters of either text that are searched for the next such place at first; twice as many each time."""
_WIDEST = 1024


class Alignment:
    """Positions in a cleaned text to positions in the given one, and back.

    Both directions keep order, and stay within the texts. Where characters were merged or replaced,
    a position inside goes to the beginning of what became of them, an end to its end.

    Args:
        given: The text as it was.
        cleaned: The same after cleaning.
    """

    def __init__(self, given: str, cleaned: str) -> None:
        self._starts, self._ends = _aligned(given, cleaned)

    def given_span(self, start: int, end: int) -> tuple[int, int]:
        """The part of the given text that became `cleaned[start:end]`, which is not empty."""
        return self._starts[start], self._ends[end - 1]

    def cleaned_span(self, start: int, end: int) -> tuple[int, int]:
        """The part of the cleaned text that `given[start:end]` became; empty when nothing is left of it."""
        first = bisect_right(self._ends, start)
        return first, max(first, bisect_left(self._starts, end))


def _aligned(given: str, cleaned: str) -> tuple[list[int], list[int]]:
    """Where in `given` the origin of each character of `cleaned` begins and ends."""
    if given.strip() == cleaned:
        offset = len(given) - len(given.lstrip())
        return list(range(offset, offset + len(cleaned))), list(range(offset + 1, offset + len(cleaned) + 1))
    text, begins, ends = _normalised(given, _form_of(cleaned))
    starts = [0] * len(cleaned)
    stops = [0] * len(cleaned)
    for (i, next_i), (j, next_j) in _refined(text, cleaned):
        if next_i - i == next_j - j and text[i:next_i] == cleaned[j:next_j]:
            starts[j:next_j], stops[j:next_j] = begins[i:next_i], ends[i:next_i]
        elif next_j > j:
            at = begins[i] if i < len(begins) else len(given)
            starts[j:next_j] = [at] * (next_j - j)
            stops[j:next_j] = [max(at, ends[next_i - 1] if next_i else 0)] * (next_j - j)
    return starts, stops


def _form_of(text: str) -> NormalForm | None:
    """The strongest normal form that a text is in."""
    forms: tuple[NormalForm, ...] = ("NFKC", "NFC")
    return next((form for form in forms if unicodedata.is_normalized(form, text)), None)


def _normalised(text: str, form: NormalForm | None) -> tuple[str, list[int], list[int]]:
    """The text in a normal form, and where the origin of each of its characters begins and ends."""
    if form is None or unicodedata.is_normalized(form, text):
        return text, list(range(len(text))), list(range(1, len(text) + 1))
    parts: list[str] = []
    begins: list[int] = []
    ends: list[int] = []
    for start, end in pairwise(_boundaries(text, form)):
        part = unicodedata.normalize(form, text[start:end])
        parts.append(part)
        begins += [start] * len(part)
        ends += [end] * len(part)
    return "".join(parts), begins, ends


def _boundaries(text: str, form: NormalForm) -> Iterator[int]:
    """Positions at which a text may be cut and its parts be normalised apart, 0 and its length among them."""
    normal = unicodedata.normalize
    last = 0
    yield 0
    for position in range(1, len(text)):
        sign = text[position]
        if not sign.isascii():
            decomposed = normal("NFKD" if form == "NFKC" else "NFD", sign)
            before = text[last:position]
            if unicodedata.combining(decomposed[0]) or normal(form, before + sign) != normal(form, before) + normal(
                form, sign
            ):
                continue
        last = position
        yield position
    if text:
        yield len(text)


Piece = tuple[tuple[int, int], tuple[int, int]]


def _refined(text: str, other: str) -> Iterator[Piece]:
    """The same as `_pieces`, with single characters that agree found within short unlike parts."""
    for (i, next_i), (j, next_j) in _pieces(text, other):
        part, other_part = text[i:next_i], other[j:next_j]
        if part == other_part or not part or not other_part or max(len(part), len(other_part)) > _REACH:
            yield (i, next_i), (j, next_j)
            continue
        at_i, at_j = i, j
        for block in SequenceMatcher(None, part, other_part, autojunk=False).get_matching_blocks():
            if i + block.a > at_i or j + block.b > at_j:
                yield (at_i, i + block.a), (at_j, j + block.b)
            at_i, at_j = i + block.a + block.size, j + block.b + block.size
            if block.size:
                yield (i + block.a, at_i), (j + block.b, at_j)


def _pieces(text: str, other: str) -> Iterator[Piece]:
    """Parts of two texts that belong together, in order and without gaps: equal ones, and unlike ones between them."""
    i = j = 0
    while i < len(text) or j < len(other):
        length = _common(text, other, i, j)
        if length:
            yield (i, i + length), (j, j + length)
            i, j = i + length, j + length
        if i < len(text) or j < len(other):
            next_i, next_j = _next_anchor(text, other, i, j)
            yield (i, next_i), (j, next_j)
            i, j = next_i, next_j


def _common(text: str, other: str, i: int, j: int) -> int:
    """How many characters agree from two places on."""
    length, limit = 0, min(len(text) - i, len(other) - j)
    while length < limit:
        if text[i + length : i + length + _REACH] == other[j + length : j + length + _REACH]:
            length = min(limit, length + _REACH)
        elif text[i + length] == other[j + length]:
            length += 1
        else:
            break
    return length


def _next_anchor(text: str, other: str, i: int, j: int) -> tuple[int, int]:
    """The nearest places, after two that differ, from which on the texts agree for a while; or both ends."""
    reach = _REACH
    while True:
        ahead: dict[str, int] = {}
        for position in range(min(reach, len(other) - j - _ANCHOR + 1)):
            ahead.setdefault(other[j + position : j + position + _ANCHOR], position)
        best: tuple[int, int, int] | None = None
        for step in range(min(reach, len(text) - i - _ANCHOR + 1)):
            if best is not None and step >= best[0]:
                break
            found = ahead.get(text[i + step : i + step + _ANCHOR])
            if found is not None and step + found > 0 and (best is None or step + found < best[0]):
                best = step + found, step, found
        if best is not None:
            return i + best[1], j + best[2]
        if reach >= max(len(text) - i, len(other) - j):
            ends = _common_suffix(text, other, i, j)
            return len(text) - ends, len(other) - ends
        if reach >= _WIDEST:
            return min(len(text), i + reach), min(len(other), j + reach)
        reach *= 2


def _common_suffix(text: str, other: str, i: int, j: int) -> int:
    """How many characters agree at both ends, at most as many as an anchor has."""
    length = 0
    while (
        length < min(_ANCHOR, len(text) - i, len(other) - j)
        and text[len(text) - 1 - length] == other[len(other) - 1 - length]
    ):
        length += 1
    return length
