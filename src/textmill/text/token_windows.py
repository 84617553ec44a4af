"""Tokenise long texts in overlapping windows, and find the first token of each unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NO_UNIT = -1


@dataclass(frozen=True)
class TokenWindows:
    """Windows of one text: token ids, and the unit that begins with each token, or `NO_UNIT`.

    `tokens` counts the whole text, uncut.
    """

    ids: list[list[int]]
    units: list[list[int]]
    tokens: int


def token_windows(
    tokenizer: Any, texts: Sequence[str], units: Sequence[Sequence[tuple[int, int]]], *, max_length: int, overlap: int
) -> list[TokenWindows]:
    """Tokenise texts in windows of `max_length` tokens, special ones included, that share `overlap` tokens.

    `units` are start and end of each text's units. A token that covers the ends of several units stands for the first.
    """
    encodings = tokenizer.encode_batch(list(texts))
    return [_windows(*row, max_length, overlap) for row in zip(encodings, units, strict=True)]


def _windows(encoding: Any, units: Sequence[tuple[int, int]], max_length: int, overlap: int) -> TokenWindows:
    special: list[int] = encoding.special_tokens_mask
    inner = [position for position, flag in enumerate(special) if not flag]
    begin, end = (inner[0], inner[-1] + 1) if inner else (len(special), len(special))
    of_tokens = _units_of_tokens(encoding.offsets[begin:end], units)
    before, after = encoding.ids[:begin], encoding.ids[end:]
    room = max(1, max_length - len(before) - len(after))
    step = max(1, room - min(overlap, room // 2))
    windows = TokenWindows([], [], len(encoding.ids))
    at = begin
    while True:
        stop = min(at + room, end)
        windows.ids.append(before + encoding.ids[at:stop] + after)
        inside = of_tokens[at - begin : stop - begin]
        windows.units.append([NO_UNIT] * len(before) + inside + [NO_UNIT] * len(after))
        if stop == end:
            return windows
        at += step


def _units_of_tokens(offsets: Sequence[tuple[int, int]], units: Sequence[tuple[int, int]]) -> list[int]:
    """Return for each token the first unit that it touches and no earlier token does, or `NO_UNIT`."""
    result, unit = [], 0
    for start, end in offsets:
        while unit < len(units) and units[unit][1] <= start:
            unit += 1
        if unit < len(units) and units[unit][0] < end:
            result.append(unit)
            unit += 1
        else:
            result.append(NO_UNIT)
    return result
