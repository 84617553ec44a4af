"""Cleaning, binning and reading, each by itself."""

from __future__ import annotations

import json
from pathlib import Path

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from textmill.config.sections.prepare import BinsConfig, CleaningConfig, ReadConfig, SplitsConfig
from textmill.data.cleaning import Cleaner
from textmill.data.mapping import as_text, bin_name, bin_shares
from textmill.data.reading import read_rows

CLEANER = Cleaner(CleaningConfig())
ODD = st.text(
    alphabet=st.sampled_from("aé&;ampltÃ©â€œ™ﬁ\u200b\x1b[0m\r\n \t\x00\ufeff\uff21①\u0301\ud83d"), max_size=30
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("sÃ© que estÃ¡ mal codificado", "sé que está mal codificado"),
        ("a &lt; b &amp; c", "a < b & c"),
        ("  ﬁne Ａ①  ", "fine A1"),
        ("\x1b[31mred\x1b[0m\x00", "red"),
        ("e\u0301", "é"),
    ],
)
def test_clean_repairs_text(raw: str, clean: str) -> None:
    assert CLEANER.clean(raw) == clean


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=60), ODD))
def test_cleaning_a_clean_text_changes_nothing(text: str) -> None:
    once = CLEANER.clean(text)
    assert CLEANER.clean(once) == once


@settings(max_examples=300)
@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
def test_clean_plain_text_equals_ftfy(text: str) -> None:
    if text.isascii() and text.isprintable() and "&" not in text:
        assert CLEANER.clean(text) == ftfy.fix_text(text, ftfy.TextFixerConfig(normalization="NFKC")).strip()


def test_without_repair_or_normal_form_nothing_but_the_ends_changes() -> None:
    plain = Cleaner(CleaningConfig(repair=False, normal_form=None))
    assert plain.clean(" ﬁ &amp; Ã© ") == "ﬁ &amp; Ã©"


BINS = BinsConfig(divide_by=4, edges=[-0.05, 0.05], names=["negative", "neutral", "positive"])


@pytest.mark.parametrize(
    ("value", "name"), [(0.2, "neutral"), (-0.2, "neutral"), (0.21, "positive"), (-0.21, "negative"), (0, "neutral")]
)
def test_an_edge_belongs_to_the_bin_nearer_to_zero(value: float, name: str) -> None:
    assert bin_name(value, BINS) == name


def test_an_uncertain_number_is_shared_out_by_the_normal_distribution() -> None:
    from scipy.stats import norm

    bins = BINS.model_copy(update={"uncertainty": 0.1})
    shares = json.loads(bin_shares(0.6, bins))
    low, high = norm.cdf([-0.05, 0.05], loc=0.15, scale=0.1)
    assert shares == pytest.approx({"negative": low, "neutral": high - low, "positive": 1 - high}, abs=1e-6)


def test_invalid_bins_and_shares_are_refused() -> None:
    with pytest.raises(ValidationError, match="ascend"):
        BinsConfig(edges=[1, 1], names=["a", "b", "c"])
    with pytest.raises(ValidationError, match="need 2 names"):
        BinsConfig(edges=[1], names=["a", "b", "c"])
    with pytest.raises(ValidationError, match="no rows for training"):
        SplitsConfig(validation=0.5, test=0.5)


def test_values_as_text() -> None:
    assert [as_text(value) for value in (1.0, 2, 0.5, True, "", None, float("nan"))] == [
        "1",
        "2",
        "0.5",
        "true",
        None,
        None,
        None,
    ]


def test_the_lines_named_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'text,label\n"over\ntwo lines",x\n\nplain,y\n"with ""quotes"", and comma",z\n', encoding="utf-8-sig"
    )
    chunks = list(read_rows(path, "a.csv", ReadConfig(columns={}), ["text", "label"]))
    assert [line for chunk in chunks for line in chunk.lines] == [2, 5, 6]
    assert [text for chunk in chunks for text in chunk.columns["text"]] == [
        "over\ntwo lines",
        "plain",
        'with "quotes", and comma',
    ]


def test_chunks_are_bounded_by_rows_and_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill.data.reading.ROWS", 7)
    monkeypatch.setattr("textmill.data.reading.CHARACTERS", 1000)
    path = tmp_path / "a.tsv"
    path.write_text("text\n" + "short\n" * 20 + "long" * 300 + "\n" + "short\n" * 3)
    sizes = [len(chunk.lines) for chunk in read_rows(path, "a.tsv", ReadConfig(columns={}), ["text"])]
    assert sum(sizes) == 24 and max(sizes) == 7 and len(sizes) == 4
