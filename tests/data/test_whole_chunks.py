"""What `prepare` computes of many texts at once is what it computes of each by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textmill.config.sections.prepare import CleaningConfig, ReadConfig, WordsConfig
from textmill.data import reading, separated
from textmill.data.cleaning import Cleaner
from textmill.data.passages import Words
from textmill.data.shingles import normalise, normalise_all
from textmill.data.words import word_splitter

PIECES = st.sampled_from(
    ["a", "B", "ß", "İ", "é", "_", "9", "'", "\u2019", " ", "  ", "\t", "\n", "\0", ".", "&", "\xa0"]
)
TEXTS = st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=8)


@given(TEXTS)
def test_texts_are_normalised_together_as_alone(texts: list[str]) -> None:
    assert normalise_all(texts) == [normalise(text) for text in texts]
    once = [normalise(text) for text in texts]
    assert normalise_all(once) == once


@given(TEXTS)
def test_words_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    splitter = word_splitter(WordsConfig())
    assert splitter([*texts, *[""] * 100])[: len(texts)] == [
        " ".join(re.findall(r"\w+(?:['\u2019]\w+)*", text)) for text in texts
    ]


@given(st.text(max_size=12) | st.lists(PIECES, max_size=6).map("".join), st.integers(1, 3), st.integers(4, 9))
def test_simple_texts_are_clean(text: str, shortest: int, longest: int) -> None:
    cleaner = Cleaner(CleaningConfig(min_characters=shortest, max_characters=longest))
    if cleaner.simple(text):
        assert (cleaner.clean(text), cleaner.too_long(text), cleaner.problem(text)) == (text, None, None)


def test_hashes_of_passages_stay_those_of_earlier_records() -> None:
    """Registered versions keep such hashes: `data/seen.py` compares them with those of new rows."""
    hashes, texts = Words(["The mill's owner, 中文 café; it", "", "one <b>two</b> three"]).runs(3)
    assert texts.tolist() == [0, 0, 0, 0, 0, 2]
    assert hashes.tolist() == [
        1211357427102515988,
        15760431653389678734,
        7226659960711291920,
        12228995103542888278,
        2679031106694866548,
        13920250948714369300,
    ]


SOUND = ("one,good", "two words,bad", "café,good", '"quoted, text",bad', ",good")
FAULTY = ("é\udce9,bad", "only", "", '"two\nlines",good', "a,b,c", '"open,bad', 'a"b,good')


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    lines=st.lists(st.sampled_from([*SOUND, *FAULTY]) | st.sampled_from(SOUND), max_size=30),
    rows=st.integers(1, 9),
    at_once=st.sampled_from([1, 15, 60, 10_000]),
)
def test_rows_of_a_csv_do_not_depend_on_how_many_are_read_at_once(
    lines: list[str], rows: int, at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\n".join(["text,label", "first,good", *lines]).encode("utf-8", "surrogateescape"))
    config = ReadConfig.model_validate({"columns": {"text": "text", "label": "label"}, "format": "csv"})

    def read() -> Any:
        chunks = list(reading.read_rows(path, "a.csv", config, ["text", "label"]))
        bounds = [len(chunk.lines) for chunk in chunks] if all(line in SOUND for line in lines) else None
        rejected = [row for chunk in chunks for row in chunk.rejected]
        values = [[value for chunk in chunks for value in chunk.columns[name]] for name in ("text", "label")]
        return [line for chunk in chunks for line in chunk.lines], values, rejected, bounds

    monkeypatch.setattr(reading, "ROWS", rows)
    monkeypatch.setattr(separated, "_block", lambda lines, options: None)
    singly = read()
    monkeypatch.undo()
    monkeypatch.setattr(reading, "ROWS", rows)
    monkeypatch.setattr(separated, "_CHARACTERS_AT_ONCE", at_once)
    assert read() == singly
