"""Encode texts by a table of words: several times as fast as `tokenizers`, with the same ids.

A tokenizer encodes each word (pre-token) by itself. Where words end, in a text of ASCII characters, follows for the
two common pre-tokenizers from a short pattern. A table then maps each word to its ids; a new one is encoded once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

_PATTERNS = {
    # Each sign of punctuation is a word; white space separates
    "BertPreTokenizer": re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]"),
    # The pattern of GPT-2 (Radford et al. 2019): white space is part of the next word
    "ByteLevel": re.compile(
        r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
    ),
}  # fmt: skip
_LARGEST = 1_000_000
"""Words of the table at most; it is then emptied, so that memory stays flat."""
_LONGEST = 100
"""Characters of a word that the table keeps."""


class EncodedText:
    """The part of a `tokenizers.Encoding` that tasks use."""

    __slots__ = ("_special", "ids")

    def __init__(self, ids: list[int], special: tuple[int, int]) -> None:
        self.ids = ids
        self._special = special

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def special_tokens_mask(self) -> list[int]:
        """1 for each special token at both ends, else 0."""
        before, after = self._special
        return [1] * before + [0] * (len(self.ids) - before - after) + [1] * after


class _Table(dict[str, list[int]]):
    def __init__(self, tokenizer: Any, largest: int) -> None:
        self._tokenizer, self._largest = tokenizer, largest

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= self._largest:
            self.clear()
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(word) <= _LONGEST:
            self[word] = ids
        return ids


class WordTableTokenizer:
    """A tokenizer whose `encode_batch_fast` uses a table; everything else is that of the `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Any, pattern: re.Pattern[str], added: re.Pattern[str] | None, largest: int) -> None:
        self._tokenizer = tokenizer
        self._words = pattern.findall
        self._added = added
        self._table = _Table(tokenizer, largest)
        self._largest = largest
        inner, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
        start = next(start for start in range(len(whole)) if whole[start : start + len(inner)] == inner)
        self._before, self._after = whole[:start], whole[start + len(inner) :]
        self._printable = pattern is _PATTERNS["BertPreTokenizer"]  # its normaliser removes other characters

    def __reduce__(self) -> tuple[Any, ...]:
        return with_word_table, (self._tokenizer, self._largest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Any]:
        """Return the encodings; texts with other characters are left to the tokenizer."""
        before, after = (self._before, self._after) if add_special_tokens else ([], [])
        special = len(before), len(after)
        look_up, words, join = self._table.__getitem__, self._words, chain.from_iterable
        result: list[Any] = []
        others: list[int] = []
        for position, text in enumerate(texts):
            if self._simple(text):
                result.append(EncodedText([*before, *join(map(look_up, words(text))), *after], special))
            else:
                result.append(None)
                others.append(position)
        if others:
            rest = self._tokenizer.encode_batch_fast(
                [texts[position] for position in others], add_special_tokens=add_special_tokens
            )
            for position, encoding in zip(others, rest, strict=True):
                result[position] = encoding
        return result

    def _simple(self, text: str) -> bool:
        if not text.isascii() or (self._printable and not text.isprintable()):
            return False
        return self._added is None or self._added.search(text) is None


def with_word_table(tokenizer: Any, largest: int | None = None) -> Any:
    """Return a tokenizer with the same ids that encodes by a table, or the tokenizer itself if its kind has none.

    The table has at most `largest` words; None: a million.
    """
    settings = json.loads(tokenizer.to_str())
    kind: dict[str, Any] = settings["pre_tokenizer"] or {}
    normaliser = (settings["normalizer"] or {}).get("type")
    fits = {
        "BertPreTokenizer": normaliser == "BertNormalizer",
        "ByteLevel": normaliser is None and not kind.get("add_prefix_space") and kind.get("use_regex", True),
    }
    post = (settings["post_processor"] or {}).get("type")
    added = settings["added_tokens"]
    plain = all(not (token["normalized"] or token["lstrip"] or token["rstrip"]) for token in added)
    if not (
        fits.get(str(kind.get("type")))
        and plain
        and post in (None, "TemplateProcessing", "BertProcessing", "ByteLevel")
    ):
        return tokenizer
    if not tokenizer.encode("a", add_special_tokens=False).ids or settings["model"].get("dropout"):
        return tokenizer
    pattern = re.compile("|".join(re.escape(token["content"]) for token in added)) if added else None
    return WordTableTokenizer(tokenizer, _PATTERNS[kind["type"]], pattern, largest or _LARGEST)
