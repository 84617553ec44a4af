"""`textmill init`: from any file to an experiment that composes, prepares and trains, or one clear line."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.project import build_project
from support.workbooks import write_ods, write_xlsx
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.data.chunks import column_map
from textmill.data.prepare import prepare
from textmill.data.reading import read_rows
from textmill.errors import UserError
from textmill.fetching.corpus import fetch_corpus
from textmill.tasks.base import Task

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared/cases"
SMALL = ["model=encoder_tiny", "prepare.tokenizer.kind=byte_bpe", "prepare.tokenizer.vocabulary_size=500"]
WHOLE = "++prepare.tokenizer.least_count=null"
"""That of a pretrained tokenizer, which `init` proposes for texts that do not look English."""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A project without data."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "conf", root / "conf")
    shutil.copy(ROOT / "params.yaml", root)
    (root / "dvc.yaml").touch()
    (root / "data/own").mkdir(parents=True)
    monkeypatch.chdir(root)
    return Layout(root)


def init(*arguments: object) -> dict[str, Any]:
    """What `textmill init --json` says; raises its error."""
    done = CliRunner().invoke(app, ["init", *map(str, arguments), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def prepared(layout: Layout, name: str, *overrides: str) -> dict[str, Any]:
    """The statistics of the prepared data of an experiment."""
    config = compose(layout, [f"experiment={name}", *SMALL, WHOLE, *overrides])
    fetch_corpus(config.fetch, layout)
    layout.pretrained.mkdir(parents=True, exist_ok=True)
    prepare(config.prepare, config.runtime, layout)
    statistics: dict[str, Any] = json.loads((layout.prepared / "statistics.json").read_text())
    return statistics


def classes(statistics: dict[str, Any]) -> set[str]:
    return set(statistics["splits"]["train"]["classes"])


def reviews(count: int = 80, start: int = 0) -> list[tuple[str, str]]:
    verdicts = ["broke after a single week of use", "works perfectly and looks great"]
    return [
        (f"My lamp number {n * 7919 % 10007} {verdicts[n % 2]}.", "good" if n % 2 else "bad")
        for n in range(start, start + count)
    ]


def table(rows: list[tuple[str, str]], header: str = "body,verdict") -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


# -- The handed cases -----------------------------------------------------------------------

PREPARES: dict[str, set[str] | None] = {
    "binary_text/binary.parquet": {"good", "bad"},
    "booleans/spam.csv": {"true", "false"},
    "booleans/yesno.csv": {"yes", "no"},
    "brackets/reviews [2024].csv": {"good", "bad"},
    "compressed/reviews.csv.gz": {"good", "bad"},
    "few_rows/few.csv": {"good", "bad"},
    "label_spellings/nfd.csv": {"zufrieden", "enttäuscht"},
    "label_spellings/spaces.csv": {"good", "bad"},
    "multi_label/words.jsonl": {"0", "1"},
    "params_yaml/händler.csv": {"sehr gut", "nicht gut"},
    "scores/comma.csv": None,
    "scores/train.csv": None,
    "sign_labels/emoji.csv": {"😀", "😡", "❤️"},
    "sign_labels/tags.csv": {"C", "C#", "C++", "F#", "n/a", "Q&A (general)"},
    "spreadsheets/cp1252.csv": {"gut", "schlecht"},
    "spreadsheets/semicolon.csv": {"gut", "schlecht"},
    "stray_quote/quote.csv": {"good", "bad"},
    "stray_quote/quote_to_end.csv": {"good", "bad"},
}


def case(name: str) -> Path:
    if not CASES.is_dir():
        pytest.skip("no ../shared beside the repository")
    return CASES / name


@pytest.mark.slow
@pytest.mark.parametrize("name", PREPARES)
def test_init_of_a_handed_case_prepares_all_of_its_rows(layout: Layout, name: str) -> None:
    said = init(case(name), "--name", "case")
    statistics = prepared(layout, "case")
    if (expected := PREPARES[name]) is not None:
        assert classes(statistics) == expected
    dropped = statistics["duplicates"]["total"] + statistics["rejected"]["total"]
    assert sum(split["rows"] for split in statistics["splits"].values()) + dropped == said["rows"]
    assert list(statistics["read_as"]) and "## Files" in (layout.prepared / "report/README.md").read_text()


@pytest.mark.slow
def test_init_unifies_the_labels_of_two_exports(layout: Layout) -> None:
    folder = case("one_and_one_point_zero")
    init(folder / "january.csv", folder / "february.csv", "--name", "months")
    statistics = prepared(layout, "months")
    assert classes(statistics) == {"0", "1"}
    assert {("label", "0.0", "0"), ("label", "1.0", "1")} == {tuple(row[:3]) for row in statistics["labels_unified"]}


def test_test_split_of_one_score_is_one_line_before_training(layout: Layout) -> None:
    init(case("scores") / "train.csv", case("scores") / "test_same.csv", "--name", "scores")
    with pytest.raises(UserError, match="'test' have the same score"):
        prepared(layout, "scores")


@pytest.mark.parametrize("name", ["dots", "plain", "spaces", "title_only"])
def test_params_yaml_arrives_as_written(layout: Layout, name: str) -> None:
    shutil.copyfile(case(f"params_yaml/params_{name}.yaml"), layout.params)
    written = yaml.safe_load(layout.params.read_text())
    config = compose(layout)
    assert config.export.title == written["title"]
    if "prepare" in written:
        assert dict(config.fetch.source)["files"] == written["fetch"]["source"]["files"]
        column = config.prepare.read.columns["label"]
        expected = written["prepare"]["read"]["columns"]["label"]
        assert getattr(column, "names", None) == (expected["names"] if isinstance(expected, dict) else None)


# -- Own kinds ------------------------------------------------------------------------------


def test_init_of_a_csv_writes_both_files_and_says_why(layout: Layout) -> None:
    (layout.root / "data/own/reviews.csv").write_text(table(reviews()))
    said = init("data/own/reviews.csv")
    assert (said["name"], said["task"]) == ("reviews", "text_classification")
    assert said["files"] == ["conf/data/reviews.yaml", "conf/experiment/reviews.yaml"]
    assert any("minilm" in reason for reason in said["reasons"])
    data = (layout.conf / "data/reviews.yaml").read_text()
    assert "all: data/own/reviews.csv" in data and "# the task's column: the file's column" in data
    assert "'body': text, 80 different, such as 'My lamp" in data
    assert classes(prepared(layout, "reviews")) == {"good", "bad"}


@pytest.mark.parametrize("stem", ["2024", "2024-01 export", "null", "No", "nan"])
def test_files_named_like_a_value_become_experiments(layout: Layout, stem: str) -> None:
    (layout.root / f"data/own/{stem}.csv").write_text(table(reviews()))
    done = init(f"data/own/{stem}.csv")
    assert done["name"].startswith("data_")
    layout.params.write_text(f"experiment: {done['name']}")
    assert stem in str(compose(layout).fetch.source)


def test_init_refuses_to_overwrite(layout: Layout) -> None:
    (layout.root / "data/own/reviews.csv").write_text(table(reviews()))
    init("data/own/reviews.csv")
    with pytest.raises(UserError, match=r"conf/data/reviews\.yaml: the file is there already"):
        init("data/own/reviews.csv")
    assert init("data/own/reviews.csv", "--name", "again")["name"] == "again"


def test_files_named_by_splits_are_the_splits(layout: Layout) -> None:
    for number, name in enumerate(("train", "dev", "test")):
        (layout.root / f"data/own/sst_{name}.csv").write_text(table(reviews(40, 40 * number)))
    init(*sorted((layout.root / "data/own").glob("*.csv")), "--name", "sst")
    files = compose(layout, ["experiment=sst"]).fetch.source
    assert dict(files)["files"] == {split: f"data/own/sst_{name}.csv" for split, name in SPLIT_FILES.items()}
    init("data/own", "--name", "folder")
    assert dict(compose(layout, ["experiment=folder"]).fetch.source) == dict(files)


SPLIT_FILES = {"train": "train", "validation": "dev", "test": "test"}


def test_file_without_header_gets_numbered_columns(layout: Layout) -> None:
    rows = "".join(f"{label}\t{text}\n" for text, label in reviews())
    (layout.root / "data/own/rows.tsv").write_text(rows)
    said = init("data/own/rows.tsv")
    assert said["columns"] == {"column_1": "label", "column_2": "text"}
    assert sum(split["rows"] for split in prepared(layout, "rows")["splits"].values()) > 60


def test_class_folders_become_labels(layout: Layout) -> None:
    for number, (text, label) in enumerate(reviews(40)):
        (layout.root / "data/own/mails" / label).mkdir(parents=True, exist_ok=True)
        (layout.root / "data/own/mails" / label / f"{number}.txt").write_text(text)
    said = init("data/own/mails")
    assert said["columns"] == {"text": "text", "folder": "label"}
    assert classes(prepared(layout, "mails")) == {"good", "bad"}
    with zipfile.ZipFile(layout.root / "data/own/mails.zip", "w") as archive:
        for path in (layout.root / "data/own/mails").rglob("*.txt"):
            archive.write(path, path.relative_to(layout.root / "data/own"))
    init("data/own/mails.zip", "--name", "zipped")
    assert classes(prepared(layout, "zipped")) == {"good", "bad"}


def test_folder_of_spark_with_partitions_is_read(layout: Layout) -> None:
    folder = layout.root / "data/own/out"
    for label in ("good", "bad"):
        part = folder / f"verdict={label}"
        part.mkdir(parents=True)
        texts = [text for text, name in reviews() if name == label]
        pq.write_table(pa.table({"text": texts}), part / "part-0.snappy.parquet")
        (part / ".part-0.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    init("data/own/out", "--label", "verdict")
    assert classes(prepared(layout, "out")) == {"good", "bad"}


@pytest.mark.parametrize("ending", ["xlsx", "ods"])
def test_workbook_is_read(layout: Layout, ending: str) -> None:
    sheets = {"Notes": [], "Data": [["body", "verdict"], *reviews()]}
    path = layout.root / f"data/own/book.{ending}"
    write_xlsx(path, sheets) if ending == "xlsx" else write_ods(path, sheets)
    init(path)
    assert classes(prepared(layout, "book")) == {"good", "bad"}


def test_nested_json_and_title_with_body(layout: Layout) -> None:
    rows = [
        {"title": f"On lamp {n}", "body": text, "meta": {"verdict": label}} for n, (text, label) in enumerate(reviews())
    ]
    (layout.root / "data/own/rows.json").write_text(json.dumps({"count": 80, "rows": rows}, indent=2))
    init("data/own/rows.json")
    columns = compose(layout, ["experiment=rows"]).prepare.read.columns
    assert columns == {"text": ["title", "body"], "label": "meta.verdict"}
    assert classes(prepared(layout, "rows")) == {"good", "bad"}


def test_rare_classes_are_left_out_and_said(layout: Layout) -> None:
    rows = [*reviews(100), ("a lonely text that nobody needs", "odd")]
    (layout.root / "data/own/reviews.csv").write_text(table(rows))
    assert any("'odd'" in reason for reason in init("data/own/reviews.csv")["reasons"])
    assert classes(prepared(layout, "reviews")) == {"good", "bad"}


def test_raw_text_is_a_language_model(layout: Layout) -> None:
    (layout.root / "data/own/book.txt").write_text("It was a dark and stormy night.\n\n" * 300)
    assert init("data/own/book.txt")["task"] == "language_modelling"
    compose(layout, ["experiment=book"])


MADE = {
    "translation": {"en": "the house number {} is red", "de": "das Haus Nummer {} ist rot"},
    "summarisation": {"body": "a long text of number {} with many more words in it", "summary": "the text {} is long"},
    "semantic_search": {"query": "where is house {} of mine", "passage": "the house {} is over there on the hill"},
    "textual_entailment": {"premise": "the house {} is red", "hypothesis": "it is house {} there", "label": "yes no"},
    "semantic_similarity": {"s1": "the house {} is red", "s2": "it is house {} there", "score": "0.5 1.0 2.5"},
    "text_classification": {"title": "on house {} of mine", "body": "the house {} is over there", "kind": "a b c"},
}


@pytest.mark.parametrize("task", MADE)
def test_task_follows_from_the_columns(layout: Layout, task: str) -> None:
    def value(template: str, n: int) -> str:
        return template.format(n) if "{" in template else template.split()[n % len(template.split())]

    rows = [{name: value(template, n) for name, template in MADE[task].items()} for n in range(60)]
    (layout.root / "data/own/rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert init("data/own/rows.jsonl")["task"] == task
    compose(layout, ["experiment=rows"])


def test_conversations_are_instruction_tuning(layout: Layout) -> None:
    turns = [[{"role": "user", "content": f"Hi {n}"}, {"role": "assistant", "content": "Yes"}] for n in range(20)]
    (layout.root / "data/own/rows.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in turns))
    assert init("data/own/rows.jsonl")["task"] == "instruction_tuning"
    compose(layout, ["experiment=rows"])


TEXTS = [text for text, _ in reviews()]
TOPICS = [[topic for place, topic in enumerate(("price", "quality", "size")) if n % 7 >> place & 1] for n in range(80)]
ENTITIES = [{"start": 3, "end": 7, "label": "THING"}]
TAGS = ["O", "B-THING", "O", "B-PER"]


def words(number: int) -> list[str]:
    return ["My", "lamp", f"from{number}", "Li"]


# name: the records, the task, its columns
SHAPES: dict[str, tuple[list[dict[str, Any]], str, dict[str, Any]]] = {
    "lists as text": (
        [{"text": text, "topics": str(topics)} for text, topics in zip(TEXTS, TOPICS, strict=True)],
        "multi_label_classification",
        {"text": "text", "labels": "topics"},
    ),
    "labels between semicolons": (
        [{"text": text, "topics": "; ".join(topics)} for text, topics in zip(TEXTS, TOPICS, strict=True)],
        "multi_label_classification",
        {"text": "text", "labels": "topics"},
    ),
    "columns of 0 and 1": (
        [{"text": t, "a": str(n % 2), "b": str(n % 3 // 2), "c": "1" if n % 5 else "0"} for n, t in enumerate(TEXTS)],
        "multi_label_classification",
        {"text": "text", "a": "a", "b": "b", "c": "c"},
    ),
    "numbers": (
        [{"text": text, "score": f"{n * 37 % 101 / 10}"} for n, text in enumerate(TEXTS)],
        "text_regression",
        {"text": "text", "value": "score"},
    ),
    "thousands": (
        [{"text": text, "price": f"{n * 371 + 12:,}"} for n, text in enumerate(TEXTS)],
        "text_regression",
        {"text": "text", "value": "price"},
    ),
    "percent with gaps": (
        [{"text": text, "score": f"{n * 37 % 101} %" if n % 20 else "NA"} for n, text in enumerate(TEXTS)],
        "text_regression",
        {"text": "text", "value": "score"},
    ),
    "spans": (
        [{"text": t, "spans": ENTITIES} for t in TEXTS],
        "token_classification",
        {"text": "text", "entities": "spans"},
    ),
    "tags": (
        [{"tokens": words(n), "tags": TAGS} for n in range(20)],
        "token_classification",
        {"text": "tokens", "entities": "tags"},
    ),
    "flat SQuAD": (
        [
            {"question": f"Where is lamp {n}?", "context": t, "answers": {"text": ["lamp"], "answer_start": [3]}}
            for n, t in enumerate(TEXTS)
        ],
        "question_answering",
        {"question": "question", "context": "context", "answers": "answers"},
    ),
    "Alpaca": (
        [{"instruction": f"What is {n} and {n}?", "input": "", "output": f"It is {n}, I think"} for n in range(20)],
        "instruction_tuning",
        {"messages": ["instruction", "output"]},
    ),
    "ShareGPT": (
        [
            {"conversations": [{"from": "human", "value": f"Hi {n}"}, {"from": "gpt", "value": "Yes"}]}
            for n in range(20)
        ],
        "instruction_tuning",
        {"messages": "conversations"},
    ),
    "preferences": (
        [
            {"prompt": f"What is {n} and {n}?", "chosen": f"It is {n}", "rejected": "I do not know it"}
            for n in range(20)
        ],
        "preference_tuning",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    ),
    "two languages": (
        [
            {"left": f"The house number {n} is red and old.", "right": f"Das Haus Nummer {n} ist rot und alt."}
            for n in range(40)
        ],
        "translation",
        {"text": "left", "translation": "right"},
    ),
    "relevance": (
        [
            {"query": f"Where is the box {n // 4}?", "document": f"Box {n} is over there", "relevant": n % 4 // 3}
            for n in range(40)
        ],
        "re_ranking",
        {"text_a": "query", "text_b": "document", "relevant": "relevant"},
    ),
    "sentences as labels": (
        [{"text": text, "label": f"I am {label} with my lamp"} for text, label in reviews()],
        "text_classification",
        {"text": "text", "label": "label"},
    ),
    "dates and names beside the text": (
        [
            {"at": f"2024-01-{n % 28 + 1:02} 10:00", "q": "NO QUERY AT ALL", "text": t, "label": n % 2}
            for n, t in enumerate(TEXTS)
        ],
        "text_classification",
        {"text": "text", "label": "label"},
    ),
}


# -- Exports of tools, splits inside of files, other formats --------------------------------

HASHES = {"_input_hash": 1, "_task_hash": 2}
SPANS = [[3, 7, "THING"]]


def studio(text: str, *results: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A task of Label Studio, of which the first annotation was cancelled."""
    done = [{"from_name": "kind", "type": kind, "value": value} for kind, value in results]
    return {"id": 1, "data": {"text": text}, "annotations": [{"was_cancelled": True, "result": []}, {"result": done}]}


def lines(rows: list[Any]) -> str:
    return "\n".join(map(json.dumps, rows))


VERDICTS = {"good", "bad"}
# name: the content, the task, its classes
FILES: dict[str, tuple[str, str, set[str]]] = {
    "lists.json": (json.dumps([["body", "verdict"], *reviews()]), "text_classification", VERDICTS),
    "unnamed.json": (json.dumps(reviews()), "text_classification", VERDICTS),
    "lists.jsonl": (lines([["body", "verdict"], *reviews()]), "text_classification", VERDICTS),
    "split.json": (
        json.dumps({"columns": ["body", "verdict"], "index": [0], "data": reviews()}),
        "text_classification",
        VERDICTS,
    ),
    "longest.json": (
        json.dumps({"names": [{"id": 1}], "rows": [{"t": t, "label": v} for t, v in reviews()]}),
        "text_classification",
        VERDICTS,
    ),
    "fasttext.txt": ("".join(f"__label__{v} {t}\n" for t, v in reviews()), "text_classification", VERDICTS),
    "tags.txt": (
        "".join(f"__label__{v} {'__label__lamp ' * (n % 3 > 0)}{t}\n" for n, (t, v) in enumerate(reviews())),
        "multi_label_classification",
        set(),
    ),
    "rows.xml": (
        "<r>" + "".join(f"<row verdict='{v}'><body>{t} &amp; so on</body></row>" for t, v in reviews()) + "</r>",
        "text_classification",
        VERDICTS,
    ),
    "rows.yaml": (
        "".join(f"- body: {t}\n  label: {v == 'good'}\n" for t, v in reviews()),
        "text_classification",
        {"True", "False"},
    ),
    "studio.json": (
        json.dumps([studio(t, ("choices", {"choices": [v]})) for t, v in reviews()]),
        "text_classification",
        VERDICTS,
    ),
    "studio_spans.json": (
        json.dumps([studio(t, ("labels", {"start": 3, "end": 7, "labels": ["THING"]})) for t, _ in reviews()]),
        "token_classification",
        set(),
    ),
    "doccano.jsonl": (
        lines([{"id": n, "text": t, "label": [v]} for n, (t, v) in enumerate(reviews())]),
        "text_classification",
        VERDICTS,
    ),
    "doccano.csv": (
        "id,data,label\n" + "".join(f"{n},{t},{v}{'#lamp' * (n % 3 > 0)}\n" for n, (t, v) in enumerate(reviews())),
        "multi_label_classification",
        set(),
    ),
    "prodigy.jsonl": (
        lines(
            [
                {"text": t, **HASHES, "label": "GOOD", "answer": "accept" if v == "good" else "reject"}
                for t, v in reviews()
            ]
        ),
        "text_classification",
        {"GOOD", "not GOOD"},
    ),
    "spacy.json": (json.dumps([[t, {"entities": SPANS}] for t, _ in reviews()]), "token_classification", set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_exports_and_other_formats_lose_no_row(layout: Layout, name: str) -> None:
    content, task, names = FILES[name]
    (layout.root / "data/own" / name).write_text(content)
    assert init(f"data/own/{name}", "--name", "rows")["task"] == task
    statistics = prepared(layout, "rows")
    assert sum(split["rows"] for split in statistics["splits"].values()) == len(reviews())
    assert classes(statistics) == names


def test_answers_that_do_not_count_are_no_examples(layout: Layout) -> None:
    answers = ["accept", "accept", "ignore", "reject"]
    rows = [
        {"text": t, **HASHES, "accept": [v], "options": [], "answer": answers[n // 2 % 4]}
        for n, (t, v) in enumerate(reviews())
    ]
    (layout.root / "data/own/rows.jsonl").write_text(lines(rows))
    init("data/own/rows.jsonl")
    statistics = prepared(layout, "rows")
    assert (statistics["rejected"]["total"], classes(statistics)) == (40, VERDICTS)


def declared(layout: Layout, kind: str) -> Path:
    """A file of 60 training and 20 test rows, in one of several kinds."""
    rows = [(*row, "Train" if n < 60 else "Test") for n, row in enumerate(reviews())]
    records = [dict(zip(("body", "verdict", "subset"), row, strict=True)) for row in rows]
    path = layout.root / f"data/own/rows.{kind}"
    by_split = {split: [row for row in records if row["subset"] == split] for split in ("Train", "Test")}
    if kind == "csv":
        path.write_text("body,verdict,subset\n" + "".join(",".join(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind == "json":
        path.write_text(json.dumps({"version": 1, **by_split}))
    elif kind == "xlsx":
        sheets = {
            split: [["body", "verdict"], *([row["body"], row["verdict"]] for row in by_split[split])]
            for split in by_split
        }
        write_xlsx(path, sheets)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for split in by_split:
                archive.writestr(
                    f"{split.lower()}.csv", table([(row["body"], row["verdict"]) for row in by_split[split]])
                )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "xlsx", "zip"])
def test_splits_that_one_file_declares_are_used_and_said(layout: Layout, kind: str) -> None:
    said = init(declared(layout, kind))
    assert any("names the splits" in reason for reason in said["reasons"])
    assert compose(layout, ["experiment=rows"]).prepare.read.split_column is not None
    statistics = prepared(layout, "rows")
    assert statistics["splits"]["test"]["rows"] == 20 and classes(statistics) == VERDICTS


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_archive_of_class_folders_keeps_the_splits_of_its_folders(layout: Layout, kind: str) -> None:
    for number, (text, verdict) in enumerate(reviews()):
        folder = layout.root / "corpus" / ("test" if number % 4 == 0 else "train") / verdict
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}_7.txt").write_text(text)
    file = shutil.make_archive(str(layout.root / "data/own/rows"), kind, layout.root, "corpus")
    init(file, "--name", "rows")
    statistics = prepared(layout, "rows")
    assert statistics["splits"]["test"]["rows"] == 20 and classes(statistics) == VERDICTS


def test_unknown_split_is_rejected_and_numbers_of_folds_are_no_label(layout: Layout) -> None:
    rows = "".join(
        f"{text},{label},{'train' if n < 60 else 'dev' if n < 76 else 'extra'},{n % 5}\n"
        for n, (text, label) in enumerate(reviews())
    )
    (layout.root / "data/own/rows.csv").write_text("body,verdict,split,fold\n" + rows)
    assert "4 of these rows name no split" in " ".join(init("data/own/rows.csv")["reasons"])
    statistics = prepared(layout, "rows")
    assert (statistics["rejected"]["total"], statistics["splits"]["validation"]["rows"]) == (4, 16)
    assert "'extra', and names none of the splits" in (layout.prepared / "rejects.csv").read_text()


def test_names_of_classes_in_parquet_of_datasets_are_read(layout: Layout) -> None:
    names = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    rows = pa.table({"text": [t for t, _ in reviews()], "label": [int(v == "good") for _, v in reviews()]})
    schema = rows.schema.with_metadata({"huggingface": json.dumps({"info": {"features": names}})})
    pq.write_table(rows.cast(schema), layout.root / "data/own/rows.parquet")
    init("data/own/rows.parquet")
    assert classes(prepared(layout, "rows")) == VERDICTS


@pytest.mark.parametrize("escaped", [True, False])
def test_address_of_a_file_may_have_escapes(layout: Layout, escaped: bool) -> None:
    path = layout.root / "data/own" / ("my réviews [1] #2.csv" if escaped else "my%20reviews.csv")
    path.write_text(table(reviews()))
    init(path.as_uri() if escaped else f"file://{path}", "--name", "rows")
    assert classes(prepared(layout, "rows")) == VERDICTS


@pytest.mark.parametrize("name", SHAPES)
def test_task_and_columns_follow_from_the_values(layout: Layout, name: str) -> None:
    rows, task, columns = SHAPES[name]
    (layout.root / "data/own/rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert init("data/own/rows.jsonl")["task"] == task
    config = compose(layout, ["experiment=rows"])
    assert config.prepare.read.columns == columns
    fetch_corpus(config.fetch, layout)
    mapped = column_map(config.prepare.read, task_of := Task.build(config.prepare.task))
    wanted = mapped.wanted
    [chunk] = read_rows(layout.raw / "files/all/rows.jsonl", "rows.jsonl", config.prepare.read, wanted)
    good = pd.DataFrame(mapped.apply(chunk.columns)[0])
    assert len(good) == len(rows) and len(task_of.check(good, None)) <= len(rows) / 20


@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("name", ["rows.conll", "rows.txt"])
def test_columns_of_tokens_and_tags_are_entities(layout: Layout, name: str, columns: int) -> None:
    pairs = [
        pair for n in range(20) for pair in (*zip([*words(n), "is", "here"], [*TAGS, "O", "O"], strict=True), None)
    ]
    lines = [f"{pair[0]}{' X' * (columns - 2)} {pair[1]}" if pair else "" for pair in pairs]
    (layout.root / "data/own" / name).write_text("-DOCSTART- O\n\n" + "\n".join(lines))
    assert init(f"data/own/{name}")["columns"] == {"id": "id", "text": "text", "entities": "spans"}
    config = compose(layout, ["experiment=rows"])
    fetch_corpus(config.fetch, layout)
    [first, *_] = (layout.raw / "files/all/rows.jsonl").read_text().splitlines()
    assert [entity["label"] for entity in json.loads(first)["entities"]] == ["THING", "PER"]


def test_names_of_files_and_columns_are_no_references(layout: Layout) -> None:
    (layout.root / "data/own/a ${b}.csv").write_text(table(reviews(), "${body},verdict"))
    init("data/own/a ${b}.csv", "--name", "rows")
    assert compose(layout, ["experiment=rows"]).prepare.read.columns["text"] == "${body}"
    assert classes(prepared(layout, "rows")) == {"good", "bad"}


HEADERS = {
    "Your opinion of us? (please write one or two sentences about it)|How likely is it?": True,
    "0|1": True,
    "1e5|2024": True,
    "My lamp number 5 broke.|good": False,
}


@pytest.mark.parametrize("header", HEADERS)
def test_header_is_told_from_a_row(layout: Layout, header: str) -> None:
    (layout.root / "data/own/rows.csv").write_text(table(reviews(), header).replace(",", "|"))
    said = init("data/own/rows.csv")
    assert (list(said["columns"]) == header.split("|"), said["rows"]) == (HEADERS[header], 81 - HEADERS[header])


def test_parts_without_rows_and_readmes_are_passed_over(layout: Layout) -> None:
    folder = layout.root / "data/own/out"
    folder.mkdir()
    for number, content in enumerate((table(reviews(40)), "", "body,verdict\n", table(reviews(40, 40)))):
        (folder / f"part-{number}.csv").write_text(content)
    (folder / "README.md").write_text("# About")
    init("data/own/out")
    statistics = prepared(layout, "out")
    assert sum(split["rows"] for split in statistics["splits"].values()) == 80
    assert len(statistics["read_as"]["an empty file"]) == 2


def test_class_folders_of_files_without_ending_in_any_encoding(layout: Layout) -> None:
    for number, (text, label) in enumerate(reviews(40)):
        (layout.root / "data/own/mails" / label).mkdir(parents=True, exist_ok=True)
        (layout.root / "data/own/mails" / label / str(number)).write_bytes(f"{text} Schön größer".encode("cp1252"))
    assert init("data/own/mails")["columns"] == {"text": "text", "folder": "label"}
    statistics = prepared(layout, "mails")
    assert (classes(statistics), statistics["rejected"]["total"]) == ({"good", "bad"}, 0)


def test_missing_labels_and_look_alikes_are_said(layout: Layout) -> None:
    rows = [
        (text, "" if n % 3 == 0 else label.title() if n % 2 else label) for n, (text, label) in enumerate(reviews())
    ]
    rows += [(f"{text} Or does it?", "GOOD") for text, _ in reviews(9)]
    (layout.root / "data/own/reviews.csv").write_text(table([(text.replace(",", ""), label) for text, label in rows]))
    said = " ".join(init("data/own/reviews.csv")["reasons"])
    assert (
        "30% of the rows have no 'verdict': they are rejected" in said
        and "look alike stay apart: 'Good', 'GOOD'" in said
    )
    assert prepared(layout, "reviews")["rejected"]["total"] >= 27


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "twice.csv",
            table([(text, f"{label},x") for text, label in reviews()], "text,label,text").encode(),
            "two columns",
        ),
        (
            "numbers.jsonl",
            (json.dumps({"tokens": words(1) * 2, "tags": [0, 1, 0, 2] * 2}) + "\n").encode() * 9,
            "are numbers",
        ),
        ("answers.csv", b"chosen,rejected\na good answer of words,a bad answer of words\n" * 20, "and no prompt"),
        ("commas.csv", b"label,text\n" + b"good,a text, of many words\n" * 20, "has 3 fields.*into quotes"),
        ("image.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40, "is not text but a binary file"),
        ("zeros.csv", b"\0" * 4096 + b"text,label\n", r"zeros\.csv"),
        ("empty.csv", b"", r"the file is empty"),
        ("header.csv", b"text,label\n", r"no row that can be read"),
        ("one.csv", table([(text, "good") for text, _ in reviews()]).encode(), r"has one value only, 'good'"),
        ("alone.csv", b"text\n" + b"".join(b"a text of its own %d\n" % n for n in range(50)), r"no column of labels"),
        ("rows.ann", b"T1\tTHING 3 7\tlamp\n" * 20, r"annotations of brat"),
        ("rows.xml", b"<a><b>My lamp</b>", r"is XML without rows"),
        ("rows.yaml", b"a: {b: [", r"is not YAML"),
        ("scalar.yaml", b"a: 1\n", r"YAML without a list of rows"),
        ("damaged.parquet", b"PAR1 and no more", r"cannot be read as Parquet"),
        ("damaged.csv.gz", b"\x1f\x8b\x08\0\0\0", r"cannot be unpacked"),
        ("noise.bin", bytes(range(256)) * 40, r"noise\.bin"),
    ],
)
def test_unreadable_file_is_one_line_and_writes_nothing(layout: Layout, name: str, content: bytes, line: str) -> None:
    (layout.root / "data/own" / name).write_bytes(content)
    with pytest.raises(UserError, match=line) as error:
        init(f"data/own/{name}")
    assert "\n" not in str(error.value)
    assert not list(layout.conf.glob(f"*/{name.partition('.')[0]}.yaml"))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["data/own/absent.csv"], "no such file or folder"),
        (["data/own/reviews.csv", "--label", "verdit"], "Did you mean 'verdict'"),
        (["data/own/reviews.csv", "--text", "title"], "no column 'title'"),
        (["data/own/reviews.csv", "--task", "text_clasification"], "Did you mean 'text_classification'"),
        (["data/own/reviews.csv", "--name", "my reviews"], "is not a name"),
        (["data/own/reviews.csv", "--name", "2024"], "is read as a value"),
    ],
)
def test_wrong_option_is_one_line(layout: Layout, options: list[str], line: str) -> None:
    (layout.root / "data/own/reviews.csv").write_text(table(reviews()))
    with pytest.raises(UserError, match=line):
        init(*options)


def test_init_asks_on_a_terminal_only(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{text},{label},{'ab'[n % 2]}\n" for n, (text, label) in enumerate(reviews()))
    (layout.root / "data/own/rows.csv").write_text("body,verdict,group\n" + rows)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("typer.prompt", lambda question, **options: "group")
    from textmill.cli.init import init as command

    command(["data/own/rows.csv"], name="asked")
    assert compose(layout, ["experiment=asked"]).prepare.read.columns["label"] == "group"
    command(["data/own/rows.csv"], name="unasked", yes=True)
    assert compose(layout, ["experiment=unasked"]).prepare.read.columns["label"] == "verdict"


@pytest.mark.slow
def test_two_commands_lead_from_a_csv_to_a_registered_model(tmp_path: Path) -> None:
    project = build_project(tmp_path / "project", ROOT)
    rows = "".join(f"{text};{'😀' if label == 'good' else '😡'}\r\n" for text, label in reviews(160))
    (project.root / "data/own/Händler [1].csv").write_text("Text;Urteil\r\n" + rows, encoding="utf-8-sig")
    project.run("textmill", "init", "data/own/Händler [1].csv", "--yes")
    small = [argument for value in SMALL for argument in ("-S", value.replace("prepare.", "+prepare."))]
    project.run("dvc", "exp", "run", "-S", "experiment=handler_1", *small)
    registered = json.loads((project.root / "data/registered/registered.json").read_text())
    assert registered["name"] == "handler-1"
    answer = json.loads(project.run("textmill", "predict", "-5 stars, works perfectly", "--json").stdout)
    assert answer[0]["label"] in ("😀", "😡")
