"""A mask that fails on some texts."""

from __future__ import annotations


def mask(text: str) -> str:
    """Return the text; raise ValueError if it has the word "fail"."""
    if "fail" in text:
        raise ValueError("no such text")
    return text
