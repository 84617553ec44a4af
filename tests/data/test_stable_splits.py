"""Splits that stay: rows added in any number and order move no old row, and near-duplicates follow."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmill.data.prepared import SPLITS
from textmill.data.splitting import assign_groups
from textmill.data.stable_splits import assign_stable, assign_times, parse_time
from textmill.errors import UserError

SHARES = {"test": 0.15, "validation": 0.1}
NAMES = {0: "rare", 1: "common", 2: "third"}
NAMED = np.array(SPLITS)


def keys_of(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@settings(max_examples=200)
@given(seed=st.integers(0, 10**6), old=st.integers(300, 2000), new=st.integers(0, 3000), split_seed=st.integers(0, 9))
def test_rows_added_in_any_order_and_number_move_no_old_row(seed: int, old: int, new: int, split_seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys, strata = keys_of(seed, old + new), rng.integers(0, 3, old + new).astype(np.uint64)
    before = assign_stable(keys[:old], strata[:old], SHARES, split_seed, NAMES)
    order = rng.permutation(old + new)
    after = np.empty(old + new, before.dtype)
    after[order] = assign_stable(keys[order], strata[order], SHARES, split_seed, NAMES)
    has_all = [name for name in range(3) if len(set(natural(keys[:old][strata[:old] == name], split_seed))) == 3]
    settled = np.isin(strata[:old], has_all)
    assert (before == after[:old])[settled].all()
    assert len(has_all) == 3 or old < 900, "classes of 300 rows have a row of each split of their own"


def natural(keys: Any, seed: int) -> Any:
    """Splits of rows that are all of one class, as their own hashes say."""
    many = np.concatenate([keys, keys_of(999, 1000)])
    return assign_stable(many, np.zeros_like(many), SHARES, seed, NAMES)[: len(keys)]


@settings(max_examples=300)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(3, 12), min_size=1, max_size=6))
def test_small_classes_get_a_row_in_each_split_in_any_order(seed: int, sizes: list[int]) -> None:
    keys = keys_of(seed, sum(sizes))
    strata = np.repeat(np.arange(len(sizes)), sizes).astype(np.uint64)
    found = NAMED[assign_stable(keys, strata, SHARES, 0, {})]
    for number in range(len(sizes)):
        assert set(found[strata == number]) == {"train", "validation", "test"}
    order = np.random.default_rng(seed).permutation(len(keys))
    assert (NAMED[assign_stable(keys[order], strata[order], SHARES, 0, {})] == found[order]).all()


def test_stable_shares_and_class_balance_are_within_chance() -> None:
    keys, strata = keys_of(1, 40_000), (np.arange(40_000) % 4).astype(np.uint64)
    found = NAMED[assign_stable(keys, strata, SHARES, 0, NAMES)]
    for name, share in SHARES.items():
        for stratum in range(4):
            count, expected = int(((found == name) & (strata == stratum)).sum()), 10_000 * share
            assert abs(count - expected) < 4 * np.sqrt(expected * (1 - share))


def test_class_with_too_few_rows_is_named() -> None:
    with pytest.raises(UserError, match=r"the class 'rare' has 2 row\(s\)"):
        assign_stable(keys_of(0, 50), np.array([0] * 2 + [1] * 48, np.uint64), SHARES, 0, NAMES)


@given(seed=st.integers(0, 1000), old=st.integers(60, 300), new=st.integers(0, 300))
def test_groups_stay_whole_and_where_they_are(seed: int, old: int, new: int) -> None:
    rng = np.random.default_rng(seed)
    groups = keys_of(5, 400)
    of_row = np.concatenate([np.arange(60), rng.integers(0, 400, old + new)])
    before = assign_groups(groups[of_row[: 60 + old]], SHARES, 0, assign_stable)
    after = assign_groups(groups[of_row], SHARES, 0, assign_stable)
    assert (before == after[: len(before)]).all()
    for group in np.unique(of_row):
        assert len(set(after[of_row == group])) == 1


# -- time ------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), days=st.integers(3, 40), rows=st.integers(40, 400))
def test_by_time_the_newest_rows_are_the_test_split(seed: int, days: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.arange(days), rng.integers(0, days, rows)]).astype(np.uint64)
    found = NAMED[assign_times(times, SHARES)]
    parts = [times[found == name] for name in ("train", "validation", "test")]
    assert all(len(part) for part in parts)
    assert parts[0].max() < parts[1].min() and parts[1].max() < parts[2].min()


def test_by_time_shares_are_met_where_times_differ() -> None:
    found = NAMED[assign_times(np.random.default_rng(0).permutation(1000).astype(np.uint64), SHARES)]
    assert [(found == name).sum() for name in ("train", "validation", "test")] == [750, 100, 150]
    with pytest.raises(UserError, match=r"2 different time\(s\), too few for 3 splits"):
        assign_times(np.array([1, 1, 2], np.uint64), SHARES)


def test_parse_time_of_every_kind_is_one_moment() -> None:
    same = ["2026-11-27T12:00:00Z", "2026-11-27T13:00:00+01:00", "2026-11-27 12:00:00", "1795780800", "1795780800000"]
    assert len({parse_time(value) for value in same}) == 1
    assert parse_time("2026") < parse_time("2026-01-02") < parse_time("20260103") < parse_time(same[0])
    for wrong in (None, " ", "yesterday", "2026-13-01", "999999999999999999999"):
        with pytest.raises(ValueError, match=r"is missing|is not a date"):
            parse_time(wrong)


# -- prepare ---------------------------------------------------------------------------------

STABLE = {"method": "stable", "validation": 0.1, "test": 0.15}


def splits_of(project: Any, whole: Any, rows: list[tuple[str, str]], **options: Any) -> dict[str, str]:
    project.rows("all/reviews.csv", rows)
    project.prepare(**{"splits": STABLE, **options})
    return dict(whole().set_index("text")["split"])


@pytest.mark.parametrize("seed", range(4))
def test_prepare_of_grown_data_moves_no_old_row(project: Any, many_rows: Any, whole: Any, seed: int) -> None:
    rows = many_rows(700)
    random.Random(seed).shuffle(rows)
    before = splits_of(project, whole, rows[:400])
    grown = rows[:]
    random.Random(seed + 1).shuffle(grown)
    after = splits_of(project, whole, grown)
    assert len(before) == 400 and len(after) == 700
    assert {text: after[text] for text in before} == before
    assert 60 < sum(split == "test" for split in after.values()) < 150


def test_prepare_near_duplicates_follow_the_old_row(project: Any, whole: Any) -> None:
    """The rows are long, so that a changed word is a near-duplicate; they have a hash of their own."""
    rng = random.Random(3)
    words = [f"word{number}" for number in range(3000)]
    rows = [(" ".join(rng.choices(words, k=40)), ("good", "bad")[index % 2]) for index in range(200)]
    before = splits_of(project, whole, rows)
    copies = [(f"{text} indeed", label) for text, label in rows[:80]]
    after = splits_of(project, whole, rows + copies)
    assert after == before, "read after the old rows, their near-duplicates are dropped with them"
    mixed = rows + copies
    random.Random(1).shuffle(mixed)
    shuffled = splits_of(project, whole, mixed)
    kept = {text.removesuffix(" indeed") for text in shuffled}
    assert len(kept) == len(shuffled) == 200, "in any order one of them stays: no two are in two splits"
    assert all(before[text] == split for text, split in shuffled.items() if text in before), "no old row moved"


def test_prepare_rows_without_group_are_groups_of_their_own(
    project: Any, whole: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        f"{'' if index % 2 else f'author {index % 30}'},this is text number {index},{'ab'[index % 3 > 1]}"
        for index in range(300)
    ]
    project.raw("all/a.csv", "\n".join(["author,text,label", *lines]))
    options = {"columns": {"text": "text", "label": "label", "author": "author"}, "duplicates": {"near": False}}
    for method in ("stable", "shuffled"):
        project.prepare(splits={"by": "group", "group": "author", "method": method}, **options)
        table = whole()
        alone = table[table["author"].isna() | (table["author"] == "")]
        assert len(alone) == 150
        assert alone["split"].nunique() == 3
        assert (table[table["author"].fillna("") != ""].groupby("author")["split"].nunique() == 1).all()
    assert "150 row(s) have no author: each is a group of its own" in caplog.text
    assert "splits are cut as by earlier versions (prepare.splits.method: shuffled)" in caplog.text


def test_prepare_by_time_rejects_rows_without_one(project: Any, whole: Any) -> None:
    lines = [
        f"2026-{1 + index // 28:02}-{1 + index % 28:02},this is text number {index},{'ab'[index % 2]}"
        for index in range(200)
    ]
    lines[7], lines[9] = "soon,a text from nowhere,a", ",a text without time,b"
    lines[11] = f"{datetime.now(UTC).date() + timedelta(days=3)},a text from the future,b"
    project.raw("all/a.csv", "\n".join(["day,text,label", *lines]))
    columns = {"text": "text", "label": "label", "day": "day"}
    project.prepare(columns=columns, splits={"by": "time", "time": "day"}, duplicates={"near": False})
    table = whole()
    assert table[table["split"] == "test"]["day"].min() > table[table["split"] == "validation"]["day"].max()
    assert table[table["split"] == "validation"]["day"].min() > table[table["split"] == "train"]["day"].max()
    assert [(row["row"], row["reason"]) for row in project.rejects] == [
        ("9", "is not a date or time: 'soon'"),
        ("11", "is missing, and splits.by is time"),
        ("13", f"is in the future: '{lines[11][:10]}'"),
    ]
    with pytest.raises(UserError, match="'hour' is not mapped"):
        project.prepare(columns=columns, splits={"by": "time", "time": "hour"})
