"""Held-out texts kept out of the training split, and mixtures of several sources."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.data.mixture import left_out
from textmill.errors import UserError
from textmill.fetching.corpus import fetch_corpus
from textmill.fetching.sources.captured import captured_rows
from textmill.stages import fetch as fetch_stage

FILES = "textmill.fetching.sources.files.FilesSource"
MIXTURE = "textmill.fetching.sources.mixture.MixtureSource"
WORDS = [f"word{number}" for number in range(2_000)]


def sentence(chooser: random.Random, words: int = 20) -> str:
    return " ".join(chooser.choices(WORDS, k=words))


def test_prepare_with_held_out_texts_removes_each_planted_sentence_and_no_shuffled_one(
    project: Any, whole: Any
) -> None:
    chooser = random.Random(4)
    held_out = [sentence(chooser) for _ in range(200)]
    planted = [f"{sentence(chooser, 8)}. {text.upper()}! {sentence(chooser, 5)}" for text in held_out]
    shuffled = [" ".join(chooser.sample(text.split(), 20)) for text in held_out for _ in range(5)]
    texts = [*planted, *shuffled]
    chooser.shuffle(texts)
    project.rows("train/films.csv", [(text, chooser.choice(("good", "bad"))) for text in texts])
    for split in ("validation", "test"):
        project.rows(f"{split}/films.csv", [(sentence(chooser), label) for label in ("good", "bad")])
    exam = project.layout.raw / "held_out" / "exam" / "all" / "questions.jsonl"
    exam.parent.mkdir(parents=True)
    exam.write_text("".join(json.dumps({"question": text, "number": 1}) + "\n" for text in held_out))
    for workers in (1, 3):
        found = project.prepare(
            decontaminate=[{"name": "exam", "columns": ["question"]}],
            duplicates={"near": False},
            workers=workers,
        )
        assert sorted(found.frame("train")["text"]) == sorted(shuffled)
        assert found.statistics["contaminated"] == {"exam": 200}
        assert {row["reason"] for row in project.rejects} == {"shares a passage with the held-out texts 'exam'"}
        assert len(project.rejects) == 200
    assert "| exam | 200 |" in (project.layout.prepared / "report" / "README.md").read_text()


def test_prepare_without_the_held_out_file_names_the_setting(project: Any, many_rows: Any) -> None:
    project.rows("all/films.csv", many_rows(40))
    with pytest.raises(UserError, match=r"no held-out texts 'exam'.*fetch.held_out.exam"):
        project.prepare(decontaminate=[{"name": "exam", "columns": ["question"]}])


def test_left_out_keeps_the_weights_whatever_the_order() -> None:
    chooser = np.random.default_rng(2)
    sources = np.repeat(np.array([7, 8, 9], np.uint64), [5_000, 2_000, 500])
    sizes = chooser.integers(10, 300, len(sources)).astype(np.uint64)
    keys = chooser.integers(0, 1 << 63, len(sources)).astype(np.uint64)
    names, weights = {7: "web", 8: "books", 9: "code"}, {"web": 2.0, "books": 1.0, "code": 1.0}
    mask = left_out(weights, names, sources, sizes, keys, seed=0)
    kept = [float(sizes[~mask & (sources == code)].sum()) for code in (7, 8, 9)]
    assert not mask[sources == 9].any()
    assert kept[0] / kept[2] == pytest.approx(2, abs=0.01)
    assert kept[1] / kept[2] == pytest.approx(1, abs=0.01)
    order = chooser.permutation(len(sources))
    again = left_out(weights, names, sources[order], sizes[order], keys[order], seed=0)
    assert (again == mask[order]).all()
    assert (left_out(weights, names, sources, sizes, keys, seed=1) != mask).any()


def test_prepare_mixes_fetched_sources_and_reports_their_shares(
    project: Any, many_rows: Any, whole: Any, tmp_path: Path
) -> None:
    rows = many_rows(900)
    for name, part in (("web", rows[:600]), ("books", rows[600:])):
        project.rows(f"own/{name}.csv", part).rename(tmp_path / f"{name}-1.2.csv")
    own = {"_target_": FILES, "licence": "MIT"}
    sources = {name: {**own, "files": {"all": f"{name}-1.2.csv"}} for name in ("web", "books")}
    fetch_corpus(FetchConfig(source={"_target_": MIXTURE, "sources": sources}), Layout(tmp_path))
    digests = set()
    for workers in (1, 2):
        found = project.prepare(mixture={"web": 1, "books": 3}, duplicates={"near": False}, workers=workers)
        digests.add(found.digest("train"))
    assert len(digests) == 1
    characters = found.frame("train").assign(size=lambda frame: frame["text"].str.len()).groupby("source")["size"].sum()
    assert characters["books"] / characters.sum() == pytest.approx(0.75, abs=0.005)
    mixture = found.statistics["mixture"]
    assert mixture["sources"]["books"]["characters"] == characters["books"]
    assert mixture["sources"]["books"]["share_characters"] == pytest.approx(0.75, abs=0.005)
    assert mixture["left_out"] == 900 - len(whole())
    assert "| books | 75.00% |" in (project.layout.prepared / "report" / "README.md").read_text()
    with pytest.raises(UserError, match=r"'books' has weight or training rows, not both"):
        project.prepare(mixture={"web": 1})


def test_fetch_writes_held_out_texts_with_their_digests(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,y\n")
    source = {"_target_": FILES, "files": {"all": "a.csv"}}
    (tmp_path / "dvc.yaml").touch()
    fetch_corpus(FetchConfig(source=source, held_out={"exam": {**source, "licence": "MIT"}}), Layout(tmp_path))
    raw = Layout(tmp_path).raw
    assert (raw / "held_out" / "exam" / "all" / "a.csv").read_text() == "text,label\nx,y\n"
    provenance = json.loads((raw / "provenance.json").read_text())
    assert provenance["held_out"]["exam"]["licence"] == "MIT"
    assert list(provenance["held_out"]["exam"]["files"]) == ["all/a.csv"]


def test_file_that_arrives_during_fetch_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTMILL_PLUGINS", "support")
    (tmp_path / "data/own").mkdir(parents=True)
    (tmp_path / "data/own/first.csv").write_text("text,label\nx,y\n")
    (tmp_path / "dvc.yaml").touch()
    source = {"_target_": "support.arriving_source.ArrivingSource", "files": {"all": "data/own/*.csv"}}
    fetch_stage.main(FetchConfig(source=source), RuntimeConfig(), Layout(tmp_path))
    assert {path.name for path in Layout(tmp_path).raw.rglob("*.csv")} == {"first.csv", "late.csv"}


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"x": [1]}, "no column 'position'"),
        ({"request": ["a"], "position": [0], "time": ["now"]}, "time zone"),
        ({"request": ["a"], "position": [None], "time": [datetime.now(UTC)]}, "empty cells"),
        ({"request": ["a"], "position": [0], "time": [datetime.now(UTC)], "answer": ["pos"]}, "Expecting value"),
        ({"request": ["a"], "position": [0], "time": [datetime.now(UTC)], "answer": [None]}, "JSON object must be"),
    ],
)
def test_foreign_file_among_captured_ones_is_named(tmp_path: Path, columns: dict[str, list[Any]], told: str) -> None:
    (tmp_path / "2026-11-27").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "2026-11-27/foreign.parquet")
    with pytest.raises(UserError, match=rf"foreign\.parquet: no file of `textmill serve --capture` .*{told}"):
        captured_rows(tmp_path, right="answer" in columns)


def test_fetch_reads_s3_by_credentials_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        login = {"aws_access_key_id": "ann", "aws_secret_access_key": "hidden-key-93", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=endpoint, **login)
        client.create_bucket(Bucket="corpus")
        for number in range(3):
            client.put_object(Bucket="corpus", Key=f"part-{number}.csv", Body=f"text,label\nx{number},y\n".encode())
        monkeypatch.setenv("CORPUS_KEY", "ann")
        monkeypatch.setenv("CORPUS_WORD", "hidden-key-93")
        options = {"key": "${secret:CORPUS_KEY}", "secret": "${secret:CORPUS_WORD}", "endpoint_url": endpoint}
        source = {"_target_": FILES, "files": {"all": "s3://corpus/part-*.csv"}, "storage_options": options}
        fetch_corpus(FetchConfig(source=source), Layout(tmp_path))
    finally:
        server.stop()
    files = Layout(tmp_path).raw / "files" / "all"
    assert [path.name for path in sorted(files.iterdir())] == [f"part-{number}.csv" for number in range(3)]
    assert (files / "part-2.csv").read_text() == "text,label\nx2,y\n"
    assert "hidden-key-93" not in (Layout(tmp_path).raw / "provenance.json").read_text()
