"""Candidates for re-ranking: every query's own document, and the others that a search ranks high."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from textmill.errors import UserError
from textmill.predicting.mined_pairs import MinedPairsSource

WORDS = [
    "apple",
    "river",
    "engine",
    "violin",
    "carpet",
    "window",
    "garden",
    "pepper",
    "silver",
    "bridge",
    "candle",
    "tunnel",
]


def mined(root: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows by split; query i asks for word i, and its document shares a second word with the next one."""
    (root / "own").mkdir()
    for split in ("train", "test"):
        rows = [
            {"q": f"where is the {word}", "d": f"{word} {other} lies near the {split} house {number}"}
            for number, (word, other) in enumerate(zip(WORDS, [*WORDS[1:], WORDS[0]], strict=True))
        ]
        (root / f"own/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: f"own/{split}.jsonl" for split in ("train", "test")}
    pairs = {"_target_": "textmill.fetching.sources.files.FilesSource", "files": files}
    source = MinedPairsSource.from_options(pairs=pairs, query="q", document="d", **options)
    provenance = source.fetch(root / "out", root)
    assert provenance.made is not None and "BM25" in provenance.made
    return {
        split: [json.loads(line) for line in (root / f"out/{split}/pairs.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }


def test_mined_pairs_bm25_ranks_the_own_document_and_its_neighbour_first(tmp_path: Path) -> None:
    splits = mined(tmp_path, depth=3, negatives=2, pool=4)
    assert splits == mined_again(tmp_path), "the same draws again"
    for split, rows in splits.items():
        by_query: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_query.setdefault(row["query"], []).append(row)
        assert len(by_query) == len(WORDS)
        for query, candidates in by_query.items():
            word = query.split()[-1]
            assert [row["relevant"] for row in candidates] == [1, 0, 0]
            own, *others = candidates
            assert own["document"].startswith(word) and own["first_rank"] <= 2
            assert len({row["document"] for row in candidates}) == 3
            ranks = [row["first_rank"] for row in others]
            assert ranks == sorted(ranks) and max(ranks) <= (5 if split == "train" else 3)
            if split == "test":
                assert any(word in row["document"] for row in others), "the one that shares the word"


def mined_again(root: Path) -> dict[str, list[dict[str, Any]]]:
    again = root / "again"
    again.mkdir()
    return mined(again, depth=3, negatives=2, pool=4)


def test_mined_pairs_queries_limit_the_training_split_only(tmp_path: Path) -> None:
    splits = mined(tmp_path, depth=2, negatives=1, queries=5)
    assert {split: len({row["query"] for row in rows}) for split, rows in splits.items()} == {"train": 5, "test": 12}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "data/own/search"}, r"fetch\.source\.encoder: data/own/search: no such folder"),
        ({"negatives": 12}, "has 12 pairs"),
    ],
)
def test_mined_pairs_what_cannot_be_searched_is_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mined(tmp_path, **options)
