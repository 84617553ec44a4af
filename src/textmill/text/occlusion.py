"""Attribute an answer to the words of a text by leaving each of them out (occlusion; Zeiler & Fergus 2014)."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A word without white space; a Chinese or Japanese character is a word of its own
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def without_each_word(text: str, most: int) -> tuple[list[str], list[str]]:
    """Return the first `most` words of a text, and the text without each of them.

    A text of one word has none: nothing would be left of it.
    """
    found = list(_WORDS.finditer(text))
    if len(found) < 2:
        return [], []
    left_out = [text[: match.start()] + text[match.end() :] for match in found[:most]]
    return [match[0] for match in found[:most]], [re.sub(r"  +", " ", rest).strip() for rest in left_out]


def shown_gains(words: Sequence[str], gains: Sequence[float], shown: int) -> str:
    """Return the words with the largest effect, such as `great +0.31, not -0.12`."""
    order = sorted(range(len(words)), key=lambda place: -abs(gains[place]))[:shown]
    return ", ".join(f"{words[place]} {gains[place]:+.2f}" for place in order)
