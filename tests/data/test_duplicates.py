"""MinHash, duplicates and splits on made-up texts, against datasketch and plain sets."""

from __future__ import annotations

import random

import numpy as np
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from textmill.data import minhash
from textmill.data.duplicates import equal_groups, find_exact, find_near, find_repeated
from textmill.data.first_pass import hashes
from textmill.data.splitting import assign_splits

TEXTS = st.lists(st.text(max_size=40), min_size=1, max_size=20)
VOCABULARY = [f"word{index}" for index in range(400)]


def shingles(text: str, size: int) -> set[str]:
    padded = text.ljust(size)
    return {padded[start : start + size] for start in range(len(padded) - size + 1)}


@given(TEXTS, st.integers(1, 8))
def test_signatures_equal_datasketch(texts: list[str], size: int) -> None:
    hashed, starts = minhash.shingle_hashes(texts, size)
    ours = minhash.signatures(texts, size, 32)
    for index, start in enumerate(starts):
        theirs = MinHash(32, hashfunc=int, scheme="affine32")
        theirs.update_batch(hashed[start : starts[index + 1] if index + 1 < len(starts) else None])
        assert (theirs.hashvalues == ours[index]).all()


@given(TEXTS, st.integers(1, 6), st.data())
def test_jaccard_is_that_of_sets(texts: list[str], size: int, data: st.DataObject) -> None:
    index = st.integers(0, len(texts) - 1)
    pairs = data.draw(st.lists(st.tuples(index, index), min_size=1, max_size=10))
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    expected = [
        len(shingles(texts[one], size) & shingles(texts[two], size))
        / len(shingles(texts[one], size) | shingles(texts[two], size))
        for one, two in pairs
    ]
    np.testing.assert_allclose(minhash.jaccard(first, second, texts, size), expected)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_groups_are_those_of_equal_values(values: list[int]) -> None:
    array = np.array(values, np.uint64)
    found: set[tuple[int, ...]] = set()
    for positions, groups in equal_groups(array):
        for group in np.unique(groups):
            found.add(tuple(positions[groups == group].tolist()))
    expected = {tuple(np.flatnonzero(array == value).tolist()) for value in set(values) if values.count(value) > 1}
    assert found == expected
    assert find_repeated(array).tolist() == [value in values[:index] for index, value in enumerate(values)]


def test_groups_are_the_same_in_several_parts(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    values = np.random.default_rng(0).integers(0, 500, 2000).astype(np.uint64)
    whole = find_repeated(values)
    monkeypatch.setattr("textmill.data.duplicates._ROWS_AT_ONCE", 300)
    assert (find_repeated(values) == whole).all()


def near(texts: list[str], ranks: list[int], threshold: float = 0.8) -> NDArray[np.bool_]:
    bands, rows = minhash.band_shape(threshold, 64)
    hashed = minhash.band_hashes(minhash.signatures(texts, 5, 64), bands, rows)
    usable = np.ones(len(texts), bool)
    rank = np.array(ranks, np.uint8)
    found = find_exact(hashes(texts), np.zeros(len(texts), np.uint64), rank, usable)

    def give(positions: NDArray[np.int64]) -> list[str]:
        return [texts[position] for position in positions]

    find_near(found, iter(hashed), rank, usable, give, threshold, 5)
    return found.exact | found.near


def sentence(chooser: random.Random) -> list[str]:
    return [chooser.choice(VOCABULARY) for _ in range(25)]


def test_near_duplicates_are_found_and_others_left() -> None:
    chooser = random.Random(1)
    originals = [sentence(chooser) for _ in range(500)]
    copies = []
    for words in originals[:200]:
        changed = list(words)
        changed[chooser.randrange(25)] = chooser.choice(VOCABULARY)
        copies.append(changed)
    texts = [" ".join(words) for words in originals + copies]
    removed = near(texts, [2] * len(texts), 0.75)
    truly = [
        len(shingles(texts[index], 5) & shingles(texts[500 + index], 5))
        / len(shingles(texts[index], 5) | shingles(texts[500 + index], 5))
        >= 0.75
        for index in range(200)
    ]
    assert sum(truly) > 150
    recall = sum(removed[500 + index] for index in range(200) if truly[index]) / sum(truly)
    assert recall >= 0.95
    assert not removed[:500].any()
    assert not any(removed[500 + index] for index in range(200) if not truly[index])


def test_the_row_of_the_lower_rank_stays() -> None:
    text = " ".join(sentence(random.Random(2)))
    removed = near([text, text + "!", text, text + "?"], [2, 1, 2, 0])
    assert removed.tolist() == [True, True, True, False]


@settings(max_examples=50)
@given(
    st.lists(
        st.sampled_from(["aaaaaa bbbbbb", "aaaaaa bbbbbb!", "cc", "cc ", "dddd eeee ffff"]), min_size=1, max_size=12
    ),
    st.randoms(),
)
def test_what_stays_does_not_depend_on_the_order(texts: list[str], chooser: random.Random) -> None:
    texts = [minhash.normalise(text) for text in texts]
    shuffled = list(texts)
    chooser.shuffle(shuffled)
    one = near(texts, [2] * len(texts), 0.7)
    two = near(shuffled, [2] * len(texts), 0.7)
    assert one.sum() == two.sum()
    kept = [text for text, gone in zip(texts, one, strict=True) if not gone]
    assert len(set(kept)) == len(kept)


def test_bands_find_nearly_all_pairs_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.99):
        for count in (16, 64, 128):
            bands, rows = minhash.band_shape(threshold, count)
            assert bands * rows <= count
            assert 1 - (1 - threshold**rows) ** bands >= 0.97


@given(st.integers(8, 200), st.integers(0, 5), st.randoms())
def test_the_split_follows_the_rows_not_their_order(count: int, seed: int, chooser: random.Random) -> None:
    keys = hashes([f"text {index}" for index in range(count)])
    strata = (np.arange(count) % 2).astype(np.uint64)
    shares = {"test": 0.2, "validation": 0.1}
    order = np.array(chooser.sample(range(count), count))
    first = assign_splits(keys, strata, shares, seed, {})
    second = assign_splits(keys[order], strata[order], shares, seed, {})
    assert (first[order] == second).all()
    for stratum in (0, 1):
        names, counts = np.unique(first[strata == stratum], return_counts=True)
        assert set(names) == {"train", "validation", "test"}
        assert abs(dict(zip(names, counts, strict=True))["test"] - 0.2 * (strata == stratum).sum()) <= 1
