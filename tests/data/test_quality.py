"""Quality filters compared with datatrove's, masks of personal data, and both in `prepare`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill.data.masking import masker
from textmill.data.quality import PUNCTUATION, TERMINAL, repeated_characters, top_characters
from textmill.data.tokens import Tokens

TEXTS = st.lists(st.text(st.sampled_from("ab'\u2019 -_.é中١\u0301\n\0\u2028…"), max_size=30), max_size=5)


@given(TEXTS)
def test_tokens_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    tokens = Tokens(texts)
    for position, text in enumerate(texts):
        words = tokens.of(position, text)
        assert words == Tokens([text]).of(0, text)
        assert len(words) == tokens.counts[position]
        assert "".join(words) == "".join(text.replace("\0", " ").split())


@given(TEXTS, st.integers(2, 4))
def test_bounds_of_repetitions_are_never_below_the_exact_counts(texts: list[str], length: int) -> None:
    tokens = Tokens(texts)
    repeated, most, longest = tokens.repetitions(tokens.hashes(), length)
    for position, text in enumerate(texts):
        words = tokens.of(position, text)
        assert repeated[position] * longest[position] >= repeated_characters(words, length)
        assert most[position] * (longest[position] + length - 1) >= top_characters(words, length)


def test_punctuation_is_that_of_datatrove() -> None:
    from datatrove.utils import text

    assert text.TERMINAL_PUNCTUATION == TERMINAL
    assert text.PUNCTUATION_SET == PUNCTUATION


@pytest.fixture
def filters(repository_root: Path) -> Iterator[ModuleType]:
    """The module `bench.filters`."""
    sys.path.insert(0, str(repository_root))
    try:
        import bench.filters

        yield bench.filters
    finally:
        sys.path.remove(str(repository_root))


@pytest.mark.parametrize("name", ["gopher_repetition", "gopher_quality", "c4", "fineweb"])
@pytest.mark.parametrize("count", [1500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_filters_keep_and_drop_as_datatrove(
    filters: ModuleType, name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not filters.DATA.is_dir():
        pytest.skip("needs ../shared")
    from datatrove.utils import word_tokenizers

    monkeypatch.setattr(word_tokenizers, "load_word_tokenizer", word_tokenizers.load_word_tokenizer)
    texts = list(filters.documents(count, filters.lines_of()))
    changed, kept = filters.ours(name)(texts)
    other_texts, other_kept = filters.theirs(name, filters.prepared_words(texts))(texts)
    assert kept == other_kept
    assert 0 < sum(kept) < count
    assert all(one == two for one, two, keep in zip(changed, other_texts, kept, strict=True) if keep)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ann.lee+news@mail.example.co.uk, please.", "Write to [email], please."),
        ("two: a@b.org;c_d@e-f.net", "two: [email];[email]"),
        ("not one: a@b, @handle, x @ y.org", None),
        ("The host 8.8.8.8 and 2001:4860:4860::8888.", "The host [ip] and [ip]."),
        ("private 192.168.0.1, 127.0.0.1 and ::1 stay; so do 999.1.1.1, 1.2.3.4.5, 12:30:45 and v1.2.3.4", None),
        ("Call +49 30 901820-11 or (555) 123-4567 or 555-123-4567.", "Call [phone] or [phone] or [phone]."),
        ("Call +1 (555) 123-4567, +49 30 9018 2011, 555.123.4567 or (555) 123-4567.",
         "Call [phone], [phone], [phone] or [phone]."),
        ("On 2024-05-06 at 12:30 the price of 1,234,567 was 3.14159; ISBN 978-3-16-148410-0, 123456789", None),
    ],
)  # fmt: skip
def test_mask_replaces_personal_data_only(text: str, masked: str | None) -> None:
    mask = masker(["email", "ip", "phone"])
    assert mask is not None
    assert mask(text, Counter()) == (text if masked is None else masked)


def test_mask_is_linear_in_the_length_of_the_text() -> None:
    import time

    mask = masker(["email", "ip", "phone"])
    assert mask is not None
    for piece in ("a.", "1:", "12 ", "+1", "f:", "1."):
        started = time.perf_counter()
        mask("@" + piece * 200_000, Counter())
        assert time.perf_counter() - started < 5, piece


def test_prepare_with_quality_filters_lists_counts_and_masks(project: Any, many_rows: Any, whole: Any) -> None:
    good = [(f"{text}. The film was good and it was seen by ann@mail.org", label) for text, label in many_rows(60)]
    short = [(f"short {number} film", "good") for number in range(30)]
    project.rows("all/films.csv", [*good, *short])
    found = project.prepare(
        quality={"gopher_quality": {"min_words": 10, "min_stop_words": 1, "min_alphabetic_words": 0}},
        mask=["email"],
        duplicates={"near": False, "passage_words": None},
    )
    assert len(whole()) == 60
    assert all("[email]" in text and "@" not in text for text in whole()["text"])
    assert [row["reason"] for row in project.rejects] == ["has fewer than 10 words"] * 30
    rule = found.statistics["quality"]["has fewer than 10 words"]
    assert rule["count"] == 30
    assert rule["samples"] == ["short 0 film", "short 1 film", "short 2 film"]
    assert found.statistics["masked"] == {"email": 60}
    report = (project.layout.prepared / "report" / "README.md").read_text()
    assert "| has fewer than 10 words | 30 | short 0 film / short 1 film / short 2 film |" in report
    assert "| email | 60 |" in report


def test_prepare_with_c4_keeps_good_lines_and_counts_the_others(project: Any, many_rows: Any, whole: Any) -> None:
    rows = [(f"{text} in the end.\nRead more\nIt was good, {text}.", label) for text, label in many_rows(40)]
    project.rows("all/films.csv", rows)
    found = project.prepare(quality={"c4": {"min_sentences": 1}}, duplicates={"near": False, "passage_words": None})
    assert len(whole()) == 40
    assert not whole()["text"].str.contains("Read more").any()
    rule = "line does not end in a full stop, question mark, exclamation mark or quote"
    assert found.statistics["quality"][rule] == {"count": 40, "samples": ["Read more"] * 3}
