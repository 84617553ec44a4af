"""Positions in a cleaned text and in the text as it was given belong together."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmill.config.sections.prepare import CleaningConfig
from textmill.data.cleaning import Cleaner
from textmill.text.alignment import Alignment

CLEANER = Cleaner(CleaningConfig())
# What cleaning changes: ligatures, widths, fractions, mojibake, entities, quotes, marks, controls, Hangul in parts
ODD = [
    "ﬁ",
    "\uff21\uff22",
    "½",
    "…",
    "â€™",
    "Ã¶",
    "&amp;",
    "&lt;",
    "“x”",
    "e\u0301",
    "\x07",
    "\u1112\u1161\u11ab",
    "㎏",
    "\u00a0",
    "\r\n",
    "\u200b",
]
WORDS = st.text("abcdefghij", min_size=6, max_size=9)
PIECES = st.lists(st.one_of(WORDS, st.sampled_from(ODD)), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.data())
def test_a_word_survives_cleaning_in_both_directions(pieces: list[str], data: st.DataObject) -> None:
    text = " ".join(pieces)
    starts = [sum(map(len, pieces[:number])) + number for number in range(len(pieces))]
    plain = [number for number, piece in enumerate(pieces) if piece.isascii() and piece.isalpha()]
    if not plain:
        return
    cleaned = CLEANER.clean(text)
    alignment = Alignment(text, cleaned)
    number = data.draw(st.sampled_from(plain))
    start, end = starts[number], starts[number] + len(pieces[number])
    found = alignment.cleaned_span(start, end)
    assert cleaned[slice(*found)] == pieces[number]
    assert alignment.given_span(*found) == (start, end)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=120))
def test_any_text_is_aligned_in_order_and_within_bounds(text: str) -> None:
    if any(unicodedata.category(sign) == "Cs" for sign in text):
        return
    cleaned = CLEANER.clean(text)
    alignment = Alignment(text, cleaned)
    last = (0, 0)
    for position in range(len(cleaned)):
        span = alignment.given_span(position, position + 1)
        assert 0 <= span[0] <= span[1] <= len(text)
        assert span[0] >= last[0] and span[1] >= last[1]
        last = span
    for position in range(len(text)):
        start, end = alignment.cleaned_span(position, position + 1)
        assert 0 <= start <= end <= len(cleaned)


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=st.text(st.sampled_from("aé̱ﬁ½각각が゙ﾞＡ"), max_size=40))
def test_normalisation_alone_is_followed_exactly(form: str, text: str) -> None:
    cleaned = unicodedata.normalize(form, text)
    alignment = Alignment(text, cleaned)
    for position in range(len(cleaned)):
        start, end = alignment.given_span(position, position + 1)
        assert cleaned[position] in unicodedata.normalize(form, text[start:end])


def test_single_replacements_are_told_apart() -> None:
    text = "ﬁne donâ€™t “x” &lt;b&gt;"
    alignment = Alignment(text, CLEANER.clean(text))
    cleaned = 'fine don\'t "x" <b>'
    assert CLEANER.clean(text) == cleaned
    parts = {sign: text[slice(*alignment.given_span(at, at + 1))] for at, sign in enumerate(cleaned)}
    assert parts["'"] == "â€™" and parts["<"] == "&lt;" and parts["b"] == "b" and parts["x"] == "x"


@pytest.mark.parametrize(("text", "cleaned"), [("a" * 100_000, "b" * 90_000), ("ab" * 50_000, "ba" * 50_000)])
def test_texts_that_have_nothing_in_common_take_no_time(text: str, cleaned: str) -> None:
    started = time.perf_counter()
    Alignment(text, cleaned)
    assert time.perf_counter() - started < 5
