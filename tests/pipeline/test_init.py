"""`textmill init`: from any file to an experiment that composes, prepares and trains, or one clear line."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

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
from textmill.data.prepare import prepare
from textmill.errors import UserError
from textmill.fetching.corpus import fetch_corpus

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared/cases"
SMALL = ["model=encoder_tiny", "prepare.tokenizer.kind=byte_bpe", "prepare.tokenizer.vocabulary_size=500"]
NEW_TASKS = {"multi_label_classification"} - {path.stem for path in (ROOT / "conf/task").glob("*.yaml")}


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
    config = compose(layout, [f"experiment={name}", *SMALL, *overrides])
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


@pytest.mark.skipif(not NEW_TASKS, reason="the task for several labels is there")
def test_several_labels_a_row_name_their_task(layout: Layout) -> None:
    with pytest.raises(UserError, match="need the task multi_label_classification"):
        init(case("multi_label/topics.jsonl"))


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


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("empty.csv", b"", r"the file is empty"),
        ("header.csv", b"text,label\n", r"no row that can be read"),
        ("one.csv", table([(text, "good") for text, _ in reviews()]).encode(), r"has one value only, 'good'"),
        ("alone.csv", b"text\n" + b"".join(b"a text of its own %d\n" % n for n in range(50)), r"no column of labels"),
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
