"""Tokenise pairs of a short and a long text in windows: the short text whole, with each part of the long one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PairWindows:
    """Windows of one pair: token ids, and start and end of each token in the long text, -1 outside of it.

    `tokens` counts the whole pair, uncut.
    """

    ids: list[list[int]]
    starts: list[list[int]]
    ends: list[list[int]]
    tokens: int

    @property
    def nowhere(self) -> list[tuple[int, int]]:
        """The span (0, 0) for each window: the first token, which stands for a missing passage."""
        return [(0, 0)] * len(self.ids)

    def token_spans(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the first and last token of a passage in each window; 0 and 0 if it is not all there."""
        return [_token_span(*window, begin, end) for window in zip(self.starts, self.ends, strict=True)]


def pair_windows(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], *, max_length: int, most_first: int, overlap: int
) -> list[PairWindows]:
    """Tokenise pairs of a short and a long text in windows of `max_length` tokens, special ones included.

    The short text is cut to `most_first` tokens and half a window. Consecutive windows share
    `overlap` tokens of the long text, at most half of them.
    """
    return [
        _windows(encoding, max_length, min(most_first, max_length // 2), overlap)
        for encoding in tokenizer.encode_batch(list(pairs))
    ]


def _windows(encoding: Any, max_length: int, most_first: int, overlap: int) -> PairWindows:
    parts: list[int | None] = encoding.sequence_ids
    second = [position for position, part in enumerate(parts) if part == 1]
    begin, end = (second[0], second[-1] + 1) if second else (len(parts) - 1, len(parts) - 1)
    first = [position for position, part in enumerate(parts) if part == 0]
    cut = set(first[most_first:])
    before = [token for position, token in enumerate(encoding.ids[:begin]) if position not in cut]
    after = encoding.ids[end:]
    room = max(1, max_length - len(before) - len(after))
    step = max(1, room - min(overlap, room // 2))
    windows = PairWindows([], [], [], len(encoding.ids) - len(cut))
    outside = [-1] * len(before), [-1] * len(after)
    at = begin
    while True:
        stop = min(at + room, end)
        offsets = encoding.offsets[at:stop]
        windows.ids.append(before + encoding.ids[at:stop] + after)
        windows.starts.append(outside[0] + [start for start, _ in offsets] + outside[1])
        windows.ends.append(outside[0] + [last for _, last in offsets] + outside[1])
        if stop == end:
            return windows
        at += step


def _token_span(starts: Sequence[int], ends: Sequence[int], begin: int, end: int) -> tuple[int, int]:
    inside = [position for position, start in enumerate(starts) if start >= 0]
    if not inside or starts[inside[0]] > begin or ends[inside[-1]] < end:
        return 0, 0
    first = next((position for position in inside if ends[position] > begin), 0)
    last = next((position for position in reversed(inside) if starts[position] < end), 0)
    return (first, last) if first <= last else (0, 0)
