"""Records of seen rows: small, unreadable, and sure to find equal texts, near-duplicates and passages."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textmill.data.overlap import overlapping_rows
from textmill.data.seen import find_seen, row_sketch, shared_part, write_seen
from textmill.errors import UserError


def texts(count: int, words: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(5000)}" for _ in range(words)) for _ in range(count)]


def record(path: Path, *columns: list[str]) -> Path:
    write_seen(path, [pa.table({f"text_{number}": column for number, column in enumerate(columns)})], "key")
    return path


@pytest.mark.parametrize("words", [3, 9, 17, 18, 60, 300])
def test_record_finds_equal_near_and_contained_rows_in_64_bytes_a_row(tmp_path: Path, words: int) -> None:
    rows, fresh = texts(3000, words, 1), texts(300, max(words, 20), 2)
    seen = record(tmp_path / "seen.parquet", rows)
    assert seen.stat().st_size <= 64 * len(rows)
    assert find_seen(seen, [[row.upper() + "  " for row in rows[:300]]]).all()
    near = [f"{row}." for row in rows[:300]]
    if words > 3:
        assert find_seen(seen, [near]).mean() > 0.98
    run = 13 if words <= 17 else 12 + -(-words // 12)
    if words >= 13:
        inside = [f"{new} {' '.join(row.split()[-run:])} {new}" for new, row in zip(fresh, rows[:300], strict=True)]
        assert find_seen(seen, [inside]).all()
    if 9 <= words <= 17:
        assert find_seen(seen, [[" ".join(row.split()[1:8]) for row in rows[:300]]]).all(), "whole short texts"
    assert find_seen(seen, [fresh]).mean() < 0.02


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), words=st.integers(6, 17))
def test_record_of_short_rows_finds_what_the_exact_search_finds(seed: int, words: int) -> None:
    import tempfile

    rng = random.Random(seed)
    rows = texts(120, words, seed)
    mixed = texts(40, words, seed + 1) + [
        " ".join(row.split()[: rng.randint(6, words)] + extra.split()[: rng.randint(0, 5)])
        for row, extra in zip(rows[:40], texts(40, 5, seed + 2), strict=True)
    ]
    exact = overlapping_rows([mixed], pa.table({"text": rows}))
    with tempfile.TemporaryDirectory() as folder:
        found = find_seen(record(Path(folder) / "seen.parquet", rows), [mixed])
    assert not (exact & ~found).any()


def test_record_does_not_take_boilerplate_for_a_passage(tmp_path: Path) -> None:
    common = " ".join(f"boiler{number}" for number in range(15))
    seen = record(tmp_path / "seen.parquet", [f"{common} {text}" for text in texts(200, 20, 1)])
    fresh = [f"{common} {text}" for text in texts(100, 60, 2)]
    assert not find_seen(seen, [fresh]).any()
    assert find_seen(seen, [fresh[:5]]).all()


def test_record_of_several_texts_compares_whole_rows(tmp_path: Path) -> None:
    passage = texts(1, 30, 5)[0]
    questions = texts(20, 8, 6)
    seen = record(tmp_path / "seen.parquet", [passage] * 20, questions)
    assert find_seen(seen, [[passage] * 20, questions]).all()
    assert not find_seen(seen, [[passage] * 20, texts(20, 60, 7)]).any()


def test_record_has_no_text_and_no_common_hash_with_another(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = ["a secret that nobody may read", *texts(300, 12, 1)]
    write_seen(tmp_path / "one", [pa.table({"text": rows})], "one")
    write_seen(tmp_path / "two", [pa.table({"text": rows})], "two")
    write_seen(tmp_path / "again", [pa.table({"text": rows})], "one")
    content = (tmp_path / "one").read_bytes()
    assert b"secret" not in content
    assert content == (tmp_path / "again").read_bytes()
    one, two = (set(pq.read_table(tmp_path / name)["texts"][0].as_py()) for name in ("one", "two"))
    assert not one & two
    (tmp_path / "two").write_bytes(b"no record")
    with pytest.raises(UserError, match="not a record of seen rows"):
        find_seen(tmp_path / "two", [rows])


def test_record_adds_the_rows_of_the_version_started_from(tmp_path: Path) -> None:
    old, new = texts(400, 12, 1), texts(100, 12, 2)
    first = record(tmp_path / "first", old)
    write_seen(tmp_path / "second", [pa.table({"text": [*old[150:], *new]})], "two", first)
    write_seen(tmp_path / "third", [pa.table({"text": new})], "three", tmp_path / "second")
    for name in ("second", "third"):
        seen = tmp_path / name
        assert find_seen(seen, [[*old, *new]]).all(), "of both, and of what both started from"
        assert not find_seen(seen, [texts(200, 12, 3)]).any()
        assert seen.stat().st_size <= 64 * 500 + 1000, "a row that is still there is stored once"
    write_seen(tmp_path / "whole", [pa.table({"text": [*old, *new]})], "four", tmp_path / "second")
    write_seen(tmp_path / "alone", [pa.table({"text": [*old, *new]})], "four")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "alone").read_bytes()


def test_shared_part_of_grown_sets_is_estimated() -> None:
    rows = texts(4000, 8, 1)
    for old, new in ((4000, 4000), (2000, 4000), (1000, 4000), (0, 4000), (100, 150)):
        sketches = row_sketch([rows[:new]]), row_sketch([rows[:old] if old else texts(4000, 8, 2)])
        assert shared_part(*sketches) == pytest.approx(old / new, abs=0.15)
