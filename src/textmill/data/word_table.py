"""Encode texts by a table of words: several times as fast as `tokenizers`, with the same ids.

A tokenizer encodes each word (pre-token) by itself. Where words end, in a text of ASCII characters, follows for the
two common pre-tokenizers from a short pattern. A table then maps each word to its ids; a new one is encoded once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from textmill.text.tokens import truncated

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

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
        [ids] = self.of([word])
        return ids

    def of(self, words: list[str]) -> list[list[int]]:
        """Return the ids of each word; new ones are encoded together."""
        result: list[Any] = list(map(self.get, words))
        new = [position for position, ids in enumerate(result) if ids is None]
        if not new:
            return result
        if len(self) + len(new) > self._largest:
            self.clear()
        encodings = self._tokenizer.encode_batch_fast([words[position] for position in new], add_special_tokens=False)
        for position, encoding in zip(new, encodings, strict=True):
            ids = result[position] = encoding.ids
            if len(words[position]) <= _LONGEST and len(self) < self._largest:
                self[words[position]] = ids
        return result


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
        return with_word_table, (self._tokenizer, self._largest, isinstance(self, ChunkTokenizer))

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


class ChunkTokenizer(WordTableTokenizer):
    """A tokenizer that encodes many texts at once, without a step of Python for each word."""

    def encode_lists(self, texts: Sequence[str], max_length: int) -> pa.Array:
        """Return the ids of each text, at most `max_length`, as `truncated` cuts them: an array of lists of int32.

        The words of all texts are separated by NumPy. Each different word is looked up once.
        """
        import numpy as np
        import pyarrow as pa

        from textmill.data.distinct_words import distinct_words

        whole = "".join(texts)
        simple = np.ones(len(texts), bool)
        if not self._simple(whole):  # at least one is not, or an added token lies across two of them
            simple = np.fromiter(map(self._simple, texts), bool, len(texts))
            whole = "".join(text for text, alone in zip(texts, simple.tolist(), strict=True) if alone)
        codes = np.frombuffer(whole.encode("ascii"), np.uint8)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))[simple]
        kinds = _kinds()[codes]
        new = kinds == _SIGN
        new[1:] |= kinds[1:] != kinds[:-1]
        new[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        inside = kinds != 0
        new &= inside
        bounds = np.searchsorted(np.flatnonzero(new), np.append(0, np.cumsum(lengths)))
        codes, new = np.compress(inside, codes), np.compress(inside, new)
        word_of, words = distinct_words(codes, np.append(np.flatnonzero(new), len(codes)))
        others = [truncated(one, max_length) for one in self._encoded_alone(texts, simple)]
        entries = [*self._table.of(words.cast(pa.large_string()).to_pylist()), self._before, self._after, *others]
        # A text is its words between the special tokens, or one entry if the tokenizer encoded it
        parts = np.ones(len(texts), np.int64)
        parts[simple] = np.diff(bounds) + 2
        ends = np.cumsum(parts)
        chosen = np.empty(ends[-1] if len(ends) else 0, np.int64)
        place = np.ones(len(chosen), bool)
        place[(ends - parts)[simple]] = place[(ends - 1)[simple]] = place[(ends - 1)[~simple]] = False
        chosen[place] = word_of
        chosen[(ends - parts)[simple]], chosen[(ends - 1)[simple]] = len(words), len(words) + 1
        chosen[(ends - 1)[~simple]] = np.arange(len(others)) + len(words) + 2
        sizes = np.fromiter(map(len, entries), np.int64, len(entries))
        ids = np.fromiter(chain.from_iterable(entries), np.int32, int(sizes.sum()))
        number = sizes[chosen]
        until = np.append(0, np.cumsum(number))
        result = ids[np.repeat((np.cumsum(sizes) - sizes)[chosen] - until[:-1], number) + np.arange(until[-1])]
        offsets = np.append(0, until[ends])
        if (np.diff(offsets) > max_length).any():
            result, offsets = _cut(result, offsets, max_length, len(self._after))
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(result))

    def _encoded_alone(self, texts: Sequence[str], simple: NDArray[np.bool_]) -> list[Any]:
        """Return the encodings of the texts that are not simple."""
        rest = [text for text, alone in zip(texts, simple.tolist(), strict=True) if not alone]
        encodings: list[Any] = self._tokenizer.encode_batch_fast(rest) if rest else []
        return encodings


_SIGN = 2


@cache
def _kinds() -> NDArray[np.uint8]:
    """Return the kind of every ASCII character: 0 separates words, 1 is part of one, 2 is a word by itself."""
    import numpy as np

    signs = (chr(code) for code in range(128))
    return np.array(
        [1 if sign.isalnum() else _SIGN if sign.isprintable() and sign != " " else 0 for sign in signs], np.uint8
    )


def _cut(
    ids: NDArray[np.int32], offsets: NDArray[np.int64], max_length: int, after: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Cut lists to `max_length`; keep the last `after` ids of each."""
    import numpy as np

    sizes = np.diff(offsets)
    position = np.arange(len(ids)) - np.repeat(offsets[:-1], sizes)
    kept = (position < max_length - after) | (position >= np.repeat(sizes, sizes) - after)
    kept |= np.repeat(sizes <= max_length, sizes)
    return ids[kept], np.append(0, np.cumsum(np.minimum(sizes, max_length)))


def with_word_table(tokenizer: Any, largest: int | None = None, chunks: bool = False) -> Any:
    """Return a tokenizer with the same ids that encodes by a table, or the tokenizer itself if its kind has none.

    The table has at most `largest` words; None: a million. With `chunks`, a `ChunkTokenizer` where the kind allows it.
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
    made = ChunkTokenizer if chunks and kind["type"] == "BertPreTokenizer" else WordTableTokenizer
    return made(tokenizer, _PATTERNS[kind["type"]], pattern, largest or _LARGEST)
