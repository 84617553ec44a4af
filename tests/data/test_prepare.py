"""`prepare` end to end on small files."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textmill.data.parallel import Engine
from textmill.data.passages import find_shared
from textmill.data.shards import ShardWriter, open_split
from textmill.errors import UserError


def test_prepare_writes_all_outputs(project: Any, many_rows: Any, whole: Any) -> None:
    rows = many_rows(200)
    project.rows("all/reviews.csv", rows)
    found = project.prepare(rows_per_shard=64, max_length=8)
    assert found.state == {"labels": ["bad", "good"]}
    table = found.split("train")
    assert table.column_names == ["id", "text", "label", "words", "source", "input_ids", "length", "label_id"]
    assert table.schema.field("input_ids").type == pa.list_(pa.int32())
    assert table.schema.field("length").type == pa.int32()
    assert len(list((found.folder / "train").glob("*.arrow"))) == 3
    everything = whole()
    assert sorted(everything["text"]) == sorted(text for text, _ in rows)
    assert everything["length"].max() == 8 and set(everything["source"]) == {"reviews"}
    assert everything["id"].is_unique and everything["id"].str.startswith("all/reviews.csv:").all()
    assert (found.tokenizer_folder / "tokenizer.json").is_file()
    assert not (found.tokenizer_folder / "config.json").exists()
    report = (found.folder / "report/README.md").read_text()
    assert "200 rows were read" in report and (found.folder / "report/lengths.png").stat().st_size > 1000
    assert not [path for path in found.folder.iterdir() if path.name.startswith(("tmp", "."))]


def test_the_ids_lead_back_to_the_line(project: Any, many_rows: Any, whole: Any) -> None:
    rows = many_rows(60)
    path = project.rows("all/reviews.csv", rows)
    project.prepare()
    lines = path.read_text().splitlines()
    for identity, text in whole()[["id", "text"]].itertuples(index=False):
        assert text in lines[int(identity.rpartition(":")[2]) - 1]


def test_seeded_split_keeps_shares_and_balance_and_does_not_depend_on_order(
    project: Any, many_rows: Any, whole: Any
) -> None:
    rows = [(text, "rare" if index % 20 == 0 else label) for index, (text, label) in enumerate(many_rows(400))]
    project.rows("all/a.csv", rows)
    project.prepare()
    first = whole().set_index("text")["split"].to_dict()
    counts = whole().groupby(["split", "label"]).size()
    assert counts["test", "rare"] == 3 and counts["validation", "rare"] == 2
    assert abs(sum(split == "test" for split in first.values()) - 60) <= 2
    project.rows("all/a.csv", rows[::-1])
    project.prepare()
    assert whole().set_index("text")["split"].to_dict() == first
    project.prepare(splits={"seed": 1})
    assert whole().set_index("text")["split"].to_dict() != first


def test_given_splits_stay_and_only_the_missing_one_is_cut(project: Any, many_rows: Any, whole: Any) -> None:
    rows = many_rows(140)
    project.rows("train/a.csv", rows[:100])
    project.rows("test/b.csv", rows[100:])
    found = project.prepare(splits={"validation": 0.2})
    assert {name: found.split(name).num_rows for name in ("train", "validation", "test")} == {
        "train": 80,
        "validation": 20,
        "test": 40,
    }
    assert set(found.frame("test", ["text"])["text"]) == {text for text, _ in rows[100:]}


def test_text_in_two_splits_is_dropped_from_training(project: Any, many_rows: Any) -> None:
    rows = many_rows(100)
    project.rows("train/a.csv", [*rows[:60], (rows[70][0].upper(), "good")])
    project.rows("validation/b.csv", rows[60:80])
    project.rows("test/c.csv", [*rows[80:], (rows[3][0], "bad"), (rows[61][0] + " !", rows[61][1])])
    found = project.prepare(duplicates={"threshold": 0.8})
    assert rows[3][0] not in set(found.frame("train")["text"]) and rows[3][0] in set(found.frame("test")["text"])
    assert found.split("train").num_rows == 59 and found.split("validation").num_rows == 19
    duplicates = found.statistics["duplicates"]
    assert duplicates["across"] == {"train_in_test": 1, "train_in_validation": 1, "validation_in_test": 1}
    assert (duplicates["exact"], duplicates["near"], duplicates["conflicting_targets"]) == (2, 1, 2)


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(project: Any, many_rows: Any, whole: Any, format_: str) -> None:
    rows = [(text + ', said "she"', label) for text, label in many_rows(30)]
    if format_ == "parquet":
        path = project.raw("all/a.parquet", b"")
        pq.write_table(pa.table({"text": [row[0] for row in rows], "label": [row[1] for row in rows]}), path)
    elif format_ == "jsonl":
        import json

        project.raw(
            "all/a.jsonl", "".join(json.dumps({"text": text, "label": label, "more": 1}) + "\n" for text, label in rows)
        )
    elif format_ == "tsv":
        project.raw("all/a.tsv", "".join(f"{text}\t{label}\r\n" for text, label in rows))
    else:
        project.rows("all/a.csv", rows)
    project.prepare(read={"header": ["text", "label"], "quoted": False} if format_ == "tsv" else {})
    assert sorted(whole()[["text", "label"]].itertuples(index=False, name=None)) == sorted(rows)


def test_bins_names_source_and_further_columns(project: Any, many_rows: Any, whole: Any) -> None:
    lines = [
        f"{index}\t{(index % 5) - 2}\tsite{index % 3}\ten\t{text}" for index, (text, _) in enumerate(many_rows(60))
    ]
    project.raw("all/a.tsv", "\n".join([*lines, "60\tmany\tsite\ten\tno number here"]))
    columns = {
        "id": "id",
        "text": "text",
        "label": {
            "source": "stars",
            "bins": {"divide_by": 10, "edges": [-0.1, 0.1], "names": ["low", "middle", "high"]},
        },
        "source": "site",
        "language": "tongue",
    }
    project.prepare(columns=columns, read={"header": ["id", "stars", "site", "tongue", "text"]})
    found = whole().set_index("id")
    assert [found.loc[str(index), "label"] for index in range(5)] == ["low", "middle", "middle", "middle", "high"]
    assert found.loc["4", "source"] == "site1" and set(found["language"]) == {"en"}
    [reject] = project.rejects
    assert reject["column"] == "label" and "is not a number: 'many'" in reject["reason"]


def test_named_labels_reject_others(project: Any, many_rows: Any, whole: Any) -> None:
    project.rows(
        "all/a.csv", [*((text, "1" if label == "good" else "0") for text, label in many_rows(40)), ("what", "2")]
    )
    project.prepare(columns={"text": "text", "label": {"source": "label", "names": {0: "bad", 1: "good"}}})
    assert set(whole()["label"]) == {"bad", "good"}
    assert project.rejects[0]["reason"] == "is '2', not one of '0', '1'"


def test_languages_not_wanted_are_rejected(project: Any, many_rows: Any) -> None:
    english = [
        (f"this is a perfectly ordinary English sentence about film number {index}", label)
        for index, (_, label) in enumerate(many_rows(20))
    ]
    project.rows(
        "all/a.csv", [*english, ("das ist ein ganz gewöhnlicher deutscher Satz über das Wetter von gestern", "good")]
    )
    project.prepare(cleaning={"languages": ["en"]}, duplicates={"near": False})
    assert [row["reason"] for row in project.rejects] == ["is in the language de"]


def test_words_without_stop_words_and_chinese_segmentation(project: Any, many_rows: Any, whole: Any) -> None:
    project.rows("all/a.csv", [*many_rows(20), ("It was THE best, wasn't it? Marvellous!", "good")])
    project.prepare(words={"stop_words": "en"})
    assert "Marvellous" in set(whole()["words"])
    project.rows("all/a.csv", [*many_rows(20), ("我来到北京清华大学。", "good")])
    project.prepare(words={"segmenter": "jieba"})
    assert "我 来到 北京 清华大学" in set(whole()["words"])


def test_unknown_languages_are_named(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", many_rows(20))
    with pytest.raises(UserError, match="unknown language 'klingon'"):
        project.prepare(cleaning={"languages": ["klingon"]})
    with pytest.raises(UserError, match="no stop words for 'klingon'"):
        project.prepare(words={"stop_words": "klingon"})


def test_two_runs_are_alike_to_the_byte(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", many_rows(100))
    first = {name: project.prepare().digest(name) for name in ("train", "validation", "test")}
    assert {name: project.prepare().digest(name) for name in first} == first


def test_shards_are_mapped_not_copied(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64())])
    with ShardWriter(tmp_path / "split", schema, 1000) as writer:
        for start in range(0, 5000, 700):
            writer.write(pa.table({"number": np.arange(start, min(start + 700, 5000))}, schema=schema))
    before = pa.total_allocated_bytes()
    table = open_split(tmp_path / "split")
    assert pa.total_allocated_bytes() - before < 1000
    assert table.column("number").to_pylist() == list(range(5000))
    assert len(list((tmp_path / "split").iterdir())) == 5


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "00000.arrow").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"00000\.arrow: damaged shard"):
        open_split(tmp_path)
    with pytest.raises(UserError, match="no shards"):
        open_split(tmp_path / "nowhere")


def test_sst2(project: Any, repository_root: Path) -> None:
    folder = next((path for path in (repository_root.parent / "shared/data/sst2",) if path.is_dir()), None)
    if folder is None:
        reason = "no ../shared/data/sst2 beside the repository"
        print(reason)
        pytest.skip(reason)
    for split, name in {"train": "train", "validation": "dev", "test": "test"}.items():
        project.raw(f"{split}/{name}.tsv", (folder / f"{name}.tsv").read_bytes())
    columns = {"text": "text", "label": {"source": "label", "names": {"0": "negative", "1": "positive"}}}
    found = project.prepare(columns=columns, read={"header": ["text", "label"], "quoted": False})
    lines = sum(len((folder / f"{name}.tsv").read_text().splitlines()) for name in ("train", "dev", "test"))
    assert found.statistics["rows_read"] == lines > 9000
    assert not found.statistics["rejected"]["total"]
    assert found.state == {"labels": ["negative", "positive"]}
    texts = [set(found.frame(name, ["text"])["text"]) for name in ("train", "validation", "test")]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


PASSAGE = "it was the best of times and it was the worst of times for all"


def with_passages(rows: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Given splits: training rows 60 to 62 have passages of test rows, validation row 20 one of a test row."""
    test = [*rows[100:120], (f"Yes: {PASSAGE}!", "good"), ("A short text of six words.", "bad"), ("So so.", "bad")]
    train = [*rows[:60], (f"Once more {PASSAGE.upper()}, they say", "good")]
    train += [("He wrote: a short text of six words, and went", "bad"), ("It was so so.", "bad")]
    return {"train": train, "validation": [*rows[80:100], (f"And {PASSAGE}", "good")], "test": test}


def test_training_rows_with_passages_of_the_test_split_are_listed(project: Any, many_rows: Any, whole: Any) -> None:
    for split, rows in with_passages(many_rows(120)).items():
        project.rows(f"{split}/a.csv", rows)
    found = project.prepare(max_rejected=0.0)
    assert {name: found.split(name).num_rows for name in ("train", "validation", "test")} == {
        "train": 61,
        "validation": 20,
        "test": 23,
    }
    listed = {(row["file"], row["row"]): row for row in project.rejects}
    assert set(listed) == {
        ("data/raw/files/train/a.csv", "62"),
        ("data/raw/files/train/a.csv", "63"),
        ("data/raw/files/validation/a.csv", "22"),
    }
    assert {row["reason"] for row in listed.values()} == {"shares a passage with a row of the split 'test'"}
    assert found.statistics["rejected"]["total"] == 3
    assert "shares a passage" in (found.folder / "report/README.md").read_text()
    assert "It was so so." in set(whole()["text"])


def test_passages_are_kept_when_configured(project: Any, many_rows: Any) -> None:
    for split, rows in with_passages(many_rows(120)).items():
        project.rows(f"{split}/a.csv", rows)
    found = project.prepare(duplicates={"passage_words": None})
    assert found.split("train").num_rows == 63
    assert not project.rejects
    found = project.prepare(duplicates={"passage_words": 20})
    assert [row["text"] for row in project.rejects] == ["He wrote: a short text of six words, and went"]
    assert found.split("train").num_rows == 62


def test_prepare_of_rows_that_all_share_a_passage_says_so(project: Any, many_rows: Any) -> None:
    rows = [(f"{PASSAGE} {text}", label) for text, label in many_rows(5)]
    for split, some in (("train", rows[:2]), ("validation", rows[2:4]), ("test", rows[4:])):
        project.rows(f"{split}/a.csv", some)
    with pytest.raises(UserError, match=r"all rows of the split 'train' share a passage .*passage_words: null"):
        project.prepare()


def test_cut_splits_share_no_passage(project: Any, many_rows: Any, whole: Any) -> None:
    """Each two rows share 13 words: of pairs that a seeded split divides, the training row is dropped."""
    rows = []
    for index, (text, label) in enumerate(many_rows(100)):
        shared = " ".join(f"w{index}n{number}" for number in range(13))
        rows += [(f"{text} {shared}", label), (f"{shared} {text[::-1]}", label)]
    project.rows("all/a.csv", rows)
    project.prepare()
    everything = whole()
    names = everything["text"].str.extract(r"w(\d+)n0 ")[0]
    assert (everything.groupby(names)["split"].nunique() == 1).all()
    assert len(everything) + len(project.rejects) == 200
    assert len(project.rejects) > 20


def test_prepare_with_any_number_of_workers_writes_the_same_files(
    project: Any, many_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "2")  # `prepare` would set it for the tests that follow
    rows = many_rows(24_000)  # three chunks
    rows += [(text + " again", label) for text, label in rows[::50]] + [("", "good")] * 3
    project.rows("all/a.csv", rows)
    digests = []
    for workers in (1, 2, 5):
        folder = project.prepare(workers=workers).folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests.append({str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files})
    assert digests[0] == digests[1] == digests[2]
    assert {"train/00000.arrow", "rejects.csv", "statistics.json"} <= set(digests[0])


def test_find_shared_finds_each_planted_sentence_and_none_in_shuffled_text() -> None:
    chooser = np.random.default_rng(5)
    words = np.array([f"word{number}" for number in range(2_000)], object)
    held_out = [" ".join(words[chooser.integers(0, len(words), 20)]) for _ in range(200)]
    shuffled = [" ".join(chooser.permutation(text.split())) for text in held_out for _ in range(20)]
    planted = {
        int(row): f"{shuffled[row]} {held_out[number].upper()}, he said."
        for number, row in enumerate(chooser.permutation(len(shuffled))[:200])
    }
    texts = [planted.get(row, text) for row, text in enumerate(shuffled)]

    def chunks(values: list[str]) -> Any:
        return lambda: [
            (np.arange(start, min(start + 700, len(values))), [values[start : start + 700]])
            for start in range(0, len(values), 700)
        ]

    for workers in (1, 3):
        pairs = find_shared(chunks(held_out), chunks(texts), engine=Engine(workers=workers))
        assert pairs.tolist() == [[number, row] for number, row in enumerate(planted)]
        assert not len(find_shared(chunks(held_out), chunks(shuffled), engine=Engine(workers=workers)))


def test_training_that_starts_from_a_version_keeps_its_tokenizer_and_drops_test_rows_it_has_seen(
    project: Any, many_rows: Any, whole: Any
) -> None:
    from textmill.data.seen import write_seen
    from textmill.data.tokenizing import FILE

    rows = many_rows(200)
    project.rows("all/reviews.csv", rows)
    trained = {"kind": "byte_bpe", "vocabulary_size": 300}
    first = project.prepare(splits={"method": "stable"}, tokenizer=trained)
    tokenizer, test = (first.tokenizer_folder / FILE).read_bytes(), first.frame("test", ["text"])["text"].tolist()
    start = project.layout.pretrained / "start"
    start.mkdir(parents=True)
    (start / FILE).write_bytes(tokenizer)
    write_seen(start / "seen.parquet", [pa.table({"text": [*test[:3], "another row of words"]})], "key")

    project.rows("all/reviews.csv", many_rows(260))
    second = project.prepare(splits={"method": "stable"}, tokenizer=trained)
    assert (second.tokenizer_folder / FILE).read_bytes() == tokenizer
    left = set(second.frame("test", ["text"])["text"])
    assert not left & set(test[:3]) and set(test[3:]) <= left
    rejected = (second.folder / "rejects.csv").read_text()
    assert rejected.count("the rows that the version to start from has seen") == 3
    kept = project.prepare(splits={"method": "stable"}, tokenizer=trained, duplicates={"passage_words": None})
    assert set(test[:3]) <= set(kept.frame("test", ["text"])["text"]), "told to keep what is repeated"
