"""Duplicates, passages and splits, against plain sets and all pairs."""

from __future__ import annotations

import ast
import os
import random
import re
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array
from support.faults import rounds

from textmill.data import shingles, splitting
from textmill.data.chunks import hashes
from textmill.data.duplicates import (
    SIGNATURES_FROM,
    NearIndex,
    NearRows,
    SignatureFiles,
    equal_groups,
    find_exact,
    find_near,
    find_repeated,
    find_similar,
)
from textmill.data.passages import SHORTEST, Chunks, find_shared
from textmill.data.prepared import SPLITS
from textmill.data.splitting import assign_splits

TEXTS = st.lists(st.text(max_size=40), min_size=1, max_size=20)
VOCABULARY = [f"word{index}" for index in range(400)]


def shingle_set(text: str, size: int) -> set[str]:
    padded = text.ljust(size)
    return {padded[start : start + size] for start in range(len(padded) - size + 1)}


@given(TEXTS, st.integers(1, 6), st.data())
def test_jaccard_is_that_of_sets(texts: list[str], size: int, data: st.DataObject) -> None:
    index = st.integers(0, len(texts) - 1)
    pairs = data.draw(st.lists(st.tuples(index, index), min_size=1, max_size=10))
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    expected = [
        len(shingle_set(texts[one], size) & shingle_set(texts[two], size))
        / len(shingle_set(texts[one], size) | shingle_set(texts[two], size))
        for one, two in pairs
    ]
    np.testing.assert_allclose(shingles.jaccard(first, second, texts, size), expected)


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


def near(texts: list[str], ranks: list[int], threshold: float = 0.8, at_once: int = 1000) -> NDArray[np.bool_]:
    """The rows that are dropped; texts come in chunks, as in `prepare`."""
    usable = np.ones(len(texts), bool)
    rank = np.array(ranks, np.uint8)
    found = find_exact(hashes(texts), np.zeros(len(texts), np.uint64), rank, usable)
    with tempfile.TemporaryDirectory() as folder:

        def index(rows: NDArray[np.int64]) -> NearIndex:
            counts = shingles.ShingleCounts()
            counts.add(shingles.shingle_hashes([texts[row] for row in rows], 5)[0])
            made = NearIndex(Path(folder), len(rows), counts, threshold)
            for start in range(0, len(rows), at_once):
                some = np.arange(start, min(len(rows), start + at_once))
                chosen = [texts[rows[row]] for row in some]
                parts = shingles.batches(chosen)
                made.add((some[part], shingles.prefixes(chosen[part], 5, counts, threshold)) for part in parts)
            return made

        files = SignatureFiles(Path(folder)) if threshold >= SIGNATURES_FROM else None
        made = [
            shingles.signatures(texts[start : start + at_once], 5, threshold) for start in range(0, len(texts), at_once)
        ]
        if files is not None:
            for number, one in enumerate(made):
                files.add(number * at_once, one)
        sizes, sketches = (np.concatenate([getattr(one, name) for one in made]) for name in ("sizes", "sketches"))
        rows = NearRows(~found.exact, sizes, sketches, files, index)
        find_near(found, rows, rank, lambda positions: [texts[position] for position in positions], threshold, 5)
    return found.exact | found.near


def all_pairs(texts: list[str], threshold: float) -> NDArray[np.intp]:
    """Every pair of rows whose sets of 5 characters reach the threshold, by comparing all with all."""
    numbers: dict[str, int] = {}
    rows = [[numbers.setdefault(one, len(numbers)) for one in shingle_set(text, 5)] for text in texts]
    bounds = np.cumsum([0, *map(len, rows)])
    flat = np.concatenate([np.array(row) for row in rows])
    sets = csr_array((np.ones(len(flat), np.int32), flat, bounds), shape=(len(texts), len(numbers)))
    shared = (sets @ sets.T).tocoo()
    sizes = np.diff(bounds)
    similarity = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    chosen = (similarity >= threshold - 1e-12) & (shared.row < shared.col)
    return np.stack([shared.row[chosen], shared.col[chosen]], axis=1)


def templated(count: int) -> list[str]:
    """Letters of one template with other names and numbers; every tenth comes again with one character changed."""
    chooser = random.Random(3)
    letters: list[str] = []
    while len(letters) < count:
        names = [f"{chooser.choice('bdfgklmnprst')}{chooser.choice('aeiou')}l{chooser.randrange(60)}" for _ in range(6)]
        letter = (
            f"Dear {names[0]}, thank you for your order number {chooser.randrange(10**6)} of {names[1]} and {names[2]} "
            f"from our shop in {names[3]}. Our partner {names[4]} has fetched it, and it will arrive within three "
            f"working days at the address in {names[5]} that you gave us. Write to us if anything is missing."
        )
        letters.append(letter)
        if len(letters) % 10 == 0:
            letters.append(with_a_change(letter, chooser))
    chooser.shuffle(letters)
    return [shingles.normalise(letter) for letter in letters[:count]]


def with_a_change(text: str, chooser: random.Random) -> str:
    place = chooser.randrange(len(text))
    return f"{text[:place]}{chooser.choice('xyz')}{text[place + 1 :]}"


def natural(count: int) -> list[str]:
    """Sentences of Python's own manual and docstrings; every tenth comes again, changed."""
    texts = list(topics.values())
    for path in sorted(Path(os.__file__).parent.glob("*.py")) if count > 2000 else ():
        nodes = (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.FunctionDef))
        texts += [ast.get_docstring(node) or "" for node in nodes]
    sentences = re.split(r"(?<=[.:])\s+", " ".join(" ".join(texts).split()))
    texts = [text for text in dict.fromkeys(sentences) if len(text) > 40][: count - count // 11]
    chooser = random.Random(4)
    texts += [with_a_change(text, chooser) for text in texts[::10]]
    assert len(texts) >= count
    return [shingles.normalise(text) for text in texts[:count]]


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
        len(shingle_set(texts[index], 5) & shingle_set(texts[500 + index], 5))
        / len(shingle_set(texts[index], 5) | shingle_set(texts[500 + index], 5))
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
    texts = [shingles.normalise(text) for text in texts]
    shuffled = list(texts)
    chooser.shuffle(shuffled)
    one = near(texts, [2] * len(texts), 0.7)
    two = near(shuffled, [2] * len(texts), 0.7)
    assert one.sum() == two.sum()
    kept = [text for text, gone in zip(texts, one, strict=True) if not gone]
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("kind", [templated, natural])
@pytest.mark.parametrize("threshold", [0.9, 0.8])
def test_near_duplicates_of_all_pairs_are_found(kind: Callable[[int], list[str]], threshold: float) -> None:
    """Recall at least 99.9 % against all pairs: 5,000 rows of each kind in the nightly form, 1,000 in CI."""
    texts = kind(rounds(1000, 5000))
    pairs = all_pairs(texts, threshold)
    removed = near(texts, [2] * len(texts), threshold)
    assert len(pairs) >= len(texts) // 20
    missed = int((~removed[pairs]).all(axis=1).sum())
    assert missed <= len(pairs) / 1000, f"{missed} of {len(pairs)} pairs keep both rows"
    alone = np.setdiff1d(np.arange(len(texts)), pairs)
    assert not removed[alone].any(), "a row without a near-duplicate was dropped"


def test_near_duplicates_in_several_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = templated(300)
    whole = near(texts, [2] * 300, 0.9)
    monkeypatch.setattr("textmill.data.duplicates._ROWS_A_PART", 50)
    monkeypatch.setattr("textmill.data.duplicates._PAIRS_AT_ONCE", 100)
    assert (near(texts, [2] * 300, 0.9, at_once=7) == whole).all()
    assert whole.sum() > 20


def test_near_duplicates_among_boilerplate_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*templated(200), *natural(100)]
    whole = near(texts, [2] * 300, 0.9)
    for large in (2, 1000):  # nearly all rows are boilerplate; none is
        monkeypatch.setattr("textmill.data.duplicates._LARGE_SIGNATURE", large)
        assert (near(texts, [2] * 300, 0.9) == whole).all()
    assert whole.sum() > 20


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([SIGNATURES_FROM, 0.9, 0.97, 1.0]))
def test_near_duplicates_share_a_signature_and_pass_the_sketch(seed: int, threshold: float) -> None:
    chooser = random.Random(seed)
    text = " ".join(chooser.choices("abcdefghij", k=chooser.randint(1, 400)))
    other = text
    for _ in range(chooser.randint(0, 8)):
        other = with_a_change(other, chooser)
    made = shingles.signatures([text, other], 5, threshold)
    one, two = shingle_set(text, 5), shingle_set(other, 5)
    assert made.sizes.tolist() == [len(one), len(two)]
    if len(one & two) / len(one | two) >= threshold:
        assert set(made.keys[made.rows == 0].tolist()) & set(made.keys[made.rows == 1].tolist())
        sizes, sketches = (made.sizes[:1], made.sizes[1:]), (made.sketches[:1], made.sketches[1:])
        assert shingles.sketches_allow(sizes, sketches, threshold)[0].all()


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_similar_texts_of_another_split_are_found(seed: int, threshold: float) -> None:
    chooser = random.Random(seed)
    ours = [" ".join(sentence(chooser)[: chooser.randint(1, 25)]) for _ in range(8)]
    theirs = [chooser.choice(ours) for _ in range(6)] + [" ".join(sentence(chooser)) for _ in range(6)]
    for _ in range(chooser.randint(0, 3)):
        theirs = [with_a_change(text, chooser) for text in theirs]
    expected = [
        any(
            len(shingle_set(one, 5) & shingle_set(other, 5))
            >= threshold * len(shingle_set(one, 5) | shingle_set(other, 5))
            for other in theirs
        )
        for one in ours
    ]
    assert find_similar([ours], iter([[theirs[:5]], [theirs[5:]]]), threshold, 5).tolist() == expected


# -- passages ----------------------------------------------------------------------------------


def chunks(*columns: list[str], at_once: int = 3) -> Chunks:
    def yielded() -> Iterator[tuple[NDArray[np.int64], list[list[str]]]]:
        for start in range(0, len(columns[0]), at_once):
            some = [column[start : start + at_once] for column in columns]
            yield start + np.arange(len(some[0])), some

    return yielded


def word_list(text: str) -> list[str]:
    """Words by another way: without punctuation, each Chinese character by itself."""
    return re.findall(r"[一-鿿]|[^\W_一-鿿]+", text.casefold().replace("'", ""))


def shares(ours: str, theirs: str, length: int, shortest: int) -> bool:
    one, other = word_list(ours), word_list(theirs)
    size = min(length, len(one))
    runs = {tuple(one[start : start + size]) for start in range(len(one) - size + 1)}
    return size >= shortest and any(tuple(other[start : start + size]) in runs for start in range(len(other)))


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_shared_passages_are_those_of_word_lists(seed: int) -> None:
    chooser = random.Random(seed)
    words = ["a", "b", "It's", "fine-day", "好", "看", "C3", "..."]

    def text(longest: int) -> str:
        return "".join(
            f"{chooser.choice(words)}{chooser.choice([' ', ', ', '  '])}" for _ in range(chooser.randint(0, longest))
        )

    ours, theirs = [text(12) for _ in range(5)], [text(30) for _ in range(7)]
    theirs += [f"{text(5)}{chooser.choice(ours).upper()} {text(5)}" for _ in range(3)]
    expected = {
        (row, other) for row in range(5) for other in range(10) if shares(ours[row], theirs[other], 8, SHORTEST)
    }
    assert set(map(tuple, find_shared(chunks(ours), chunks(theirs), 8).tolist())) == expected


PASSAGE = "one two three four five six seven eight nine ten eleven twelve thirteen"


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        (f"{PASSAGE} fourteen", f"Zero. {PASSAGE.upper()}!", True),
        (PASSAGE.replace("seven", "other"), f"Zero {PASSAGE}", False),
        ("The whole of a shorter text.", "He wrote: the whole of a shorter text; and more", True),
        ("Not worth it.", "It is not worth it.", False),
        ("这是一部非常好看的电影, 我喜欢", "他说: 这是一部非常好看的电影, 我喜欢。真的", True),
        ("这是一部非常好看的电影, 我喜欢", "他说: 这是一部非常难看的电影, 我喜欢。真的", False),
        ("---", "---", False),
        ("<br />".join(PASSAGE.split()), f"zero {PASSAGE}", True),
        (PASSAGE, f"zero <p class='x'>{PASSAGE.replace(' ', '&nbsp;')}</p>", True),
        ("".join(chr(ord(each) + 0xFEE0) if each.isalpha() else each for each in PASSAGE), PASSAGE, True),
        ("if a < b and c > d then stop here", "So: if a < b and c > d then stop here.", True),
        ("if a < b and c > d then stop here", "So: if a   d then stop here.", False),
    ],
)
def test_passage_is_13_words_or_the_whole_of_a_shorter_text(ours: str, theirs: str, found: bool) -> None:
    assert bool(len(find_shared(chunks([ours]), chunks([theirs])))) == found


def test_passage_of_many_evaluation_texts_is_boilerplate() -> None:
    prompt = f"You are a helpful assistant. {PASSAGE}."
    ours = [f"{prompt} Question {number}" for number in range(11)]
    assert not len(find_shared(chunks(ours), chunks([f"{prompt} Another"])))
    assert len(find_shared(chunks(ours[:10]), chunks([f"{prompt} Another"]))) == 10
    copied = [ours[0]] * 20  # many copies of one text are no boilerplate
    assert len(find_shared(chunks([*ours[:3], "else"]), chunks(copied))) >= 20


def test_rows_of_several_texts_share_each_of_them() -> None:
    questions, passages = ["Who built the mill?", "When?", "Who owns the mill?"], [PASSAGE, PASSAGE, f"other {PASSAGE}"]
    asked = ["So who built the mill?", "Who built it?", "Who owns the mill?", "Who built the mill?"]
    about = [f"{PASSAGE} fourteen", PASSAGE, "nothing of it", PASSAGE]
    assert find_shared(chunks(questions, passages), chunks(asked, about)).tolist() == [[0, 0], [0, 3]]


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
        names, counts = np.unique(np.array(SPLITS)[first[strata == stratum]], return_counts=True)
        assert set(names) == {"train", "validation", "test"}
        assert abs(dict(zip(names, counts, strict=True))["test"] - 0.2 * (strata == stratum).sum()) <= 1


def test_splits_are_cut_block_by_block_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the blocks nor the histogram change the splits; memory holds a few bytes of a row."""
    rows = 100_000
    chooser = np.random.default_rng(3)
    keys = chooser.integers(0, rows // 2, rows).astype(np.uint64)  # some are equal: the first row comes first
    strata, among = chooser.integers(0, 3, rows).astype(np.uint64), chooser.random(rows) < 0.9
    shares = {"test": 0.2, "validation": 0.1}
    order = splitting.shuffled(keys, 5)
    expected = np.full(rows, SPLITS.index("train"))
    for stratum in range(3):
        own = np.flatnonzero(among & (strata == stratum))
        own = own[np.argsort(order[own], kind="stable")]
        first, second = round(len(own) * 0.2), round(len(own) * 0.1)
        expected[own[:first]], expected[own[first : first + second]] = (SPLITS.index(name) for name in shares)
    monkeypatch.setattr(splitting, "_ROWS_AT_ONCE", 3_000)
    monkeypatch.setattr(splitting, "_HISTOGRAM_BITS", 10)
    tracemalloc.start()
    found = assign_splits(keys, strata, shares, 5, {}, among)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found[among] == expected[among]).all()
    assert peak < 8 * rows
