"""Token ids of a text."""

from __future__ import annotations

from typing import Any


def truncated(encoding: Any, max_length: int) -> list[int]:
    """At most `max_length` ids, with the special tokens at the end kept.

    Done here and not by `Tokenizer.enable_truncation`, which changes a tokenizer that other
    threads may be using.
    """
    ids: list[int] = encoding.ids
    if len(ids) <= max_length:
        return ids
    kept = 0
    for special in reversed(encoding.special_tokens_mask):
        if not special:
            break
        kept += 1
    return ids[: max_length - kept] + ids[len(ids) - kept :]
