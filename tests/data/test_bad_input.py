"""Bad input: one clear line or a counted reject, and earlier outputs untouched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textmill.errors import UserError, from_os_error


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["all/a.csv", "all/a.tsv", "all/a.jsonl", "all/a.parquet"])
def test_an_empty_file_is_named(project: Any, name: str) -> None:
    project.raw(name, b"")
    with pytest.raises(UserError) as error:
        project.prepare()
    assert name in one_line(error) and "empty" in one_line(error)


def test_a_header_without_rows_is_an_empty_file(project: Any) -> None:
    project.raw("all/a.csv", "text,label\n")
    with pytest.raises(UserError, match=r"a\.csv: the file is empty"):
        project.prepare()


@pytest.mark.parametrize(
    ("name", "content"),
    [("all/a.csv", "texts,label\nx,y\n"), ("all/a.jsonl", '{"texts": "x", "label": "y"}\n')],
)
def test_a_missing_column_is_named_with_those_there_and_the_nearest(project: Any, name: str, content: str) -> None:
    project.raw(name, content)
    with pytest.raises(UserError) as error:
        project.prepare()
    text = one_line(error)
    assert "no column 'text'" in text and "'label'" in text and "Did you mean 'texts'?" in text


def test_a_missing_parquet_column_is_named(project: Any) -> None:
    path = project.raw("all/a.parquet", b"")
    pq.write_table(pa.table({"body": ["x"], "label": ["y"]}), path)
    with pytest.raises(UserError, match="no column 'text'; there are 'body', 'label'"):
        project.prepare()


def test_a_damaged_parquet_file_is_named(project: Any) -> None:
    project.raw("all/a.parquet", b"no parquet at all")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet"):
        project.prepare()


def test_an_unmapped_column_of_the_task_is_named(project: Any) -> None:
    project.raw("all/a.csv", "text,label\nx,y\n")
    with pytest.raises(UserError, match="'label' is not mapped"):
        project.prepare(columns={"text": "text"})


def test_unknown_labels_are_rejected_by_line(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", [*many_rows(40), ("a stray row", "goood")])
    found = project.prepare(
        task={"_target_": "textmill.tasks.text_classification.TextClassification", "labels": ["bad", "good"]}
    )
    assert [(row["row"], row["column"]) for row in project.rejects] == [("42", "label")]
    assert "goood" not in found.statistics["splits"]["train"]["classes"]


def test_a_label_that_only_the_test_split_has_is_rejected(project: Any, many_rows: Any) -> None:
    project.rows("train/a.csv", many_rows(40))
    project.rows("test/b.csv", [("one more text", "good"), ("a text of its own", "unheard")])
    project.prepare()
    [reject] = project.rejects
    assert reject["file"].endswith("test/b.csv") and reject["row"] == "3" and "bad, good" in reject["reason"]


def test_one_class_only_is_refused(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", [(text, "good") for text, _ in many_rows(40)])
    with pytest.raises(UserError, match="one label only, 'good'"):
        project.prepare()


def test_a_class_too_small_to_split_is_named(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", [*many_rows(40), ("a lonely text", "odd")])
    with pytest.raises(UserError, match=r"class 'odd' has 1 row"):
        project.prepare()


def test_invalid_utf8_rejects_only_its_row(project: Any, many_rows: Any) -> None:
    path = project.rows("all/a.csv", many_rows(40))
    path.write_bytes(path.read_bytes() + b"caf\xe9 was fine,good\nthe last film,bad\n")
    found = project.prepare()
    [reject] = project.rejects
    assert reject["row"] == "42" and "UTF-8" in reject["reason"] and "\\xe9" in reject["text"]
    assert found.statistics["rows_read"] == 42


def test_a_line_of_a_megabyte_is_rejected(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", [*many_rows(40), ("x" * 1_000_000, "good")])
    project.prepare()
    [reject] = project.rejects
    assert reject["row"] == "42" and "longer than 100000 characters" in reject["reason"] and len(reject["text"]) < 200


def test_a_quote_never_closed_is_named_by_line(project: Any, many_rows: Any) -> None:
    path = project.rows("all/a.csv", many_rows(40))
    with path.open("a") as file:
        file.write('"open,good\n')
        file.write("y" * (1 << 20) + "\n")
        file.writelines(f"{'z' * 100} {number},good\n" for number in range(20_000))
    found = project.prepare()
    rejected = [(row["row"], row["reason"][:11]) for row in project.rejects]
    assert rejected == [("42", "has a quote"), ("43", "has 1 field")]
    assert found.statistics["rows_read"] == 20_042


def test_nulls_are_rejected(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", [*many_rows(40), ("", "good"), ("a text", ""), ("   ", "bad")])
    project.prepare()
    found = {(row["row"], row["column"]) for row in project.rejects}
    assert found == {("42", "text"), ("43", "label"), ("44", "text")}


def test_json_nulls_and_broken_lines_are_rejected(project: Any, many_rows: Any) -> None:
    lines = [f'{{"text": "{text}", "label": "{label}"}}' for text, label in many_rows(40)]
    lines += ['{"text": null, "label": "good"}', '{"text": "cut', "[1, 2]", '{"label": "bad"}']
    lines.append('{"text": "half of a \\ud83d pair", "label": "bad"}')
    project.raw("all/a.jsonl", "\n".join(lines))
    project.prepare(max_rejected=0.2)
    assert {row["row"] for row in project.rejects} == {"41", "42", "43", "44", "45"}


def test_rows_with_too_few_or_many_fields_are_rejected(project: Any, many_rows: Any) -> None:
    path = project.rows("all/a.csv", many_rows(40))
    with path.open("a") as file:
        file.write("alone\nwith,too,many\n")
    project.prepare()
    assert [row["reason"] for row in project.rejects] == [
        "has 1 fields, 2 are expected",
        "has 3 fields, 2 are expected",
    ]


def test_repeated_ids_are_rejected_and_missing_ones_generated(project: Any, many_rows: Any, whole: Any) -> None:
    lines = [f"{index},{text},{label}" for index, (text, label) in enumerate(many_rows(40))]
    project.raw("all/a.csv", "\n".join(["id,text,label", *lines, "7,another text,good", ",a third text,bad"]))
    project.prepare(columns={"id": "id", "text": "text", "label": "label"})
    [reject] = project.rejects
    assert reject["row"] == "42" and reject["column"] == "id" and "'7'" in reject["reason"]
    ids = whole()["id"]
    assert ids.is_unique and "all/a.csv:43" in set(ids)


def test_too_many_rejects_fail_the_stage_and_stay_readable(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", [*many_rows(40), *[("", "good")] * 20])
    with pytest.raises(UserError) as error:
        project.prepare()
    text = one_line(error)
    assert "20 of 60 rows are rejected" in text and "a.csv:42" in text
    assert (project.layout.state / "rejects.csv").read_text().count("\n") == 21
    assert not project.layout.prepared.exists()


def test_a_source_without_a_test_split_and_no_share_for_it(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", many_rows(40))
    with pytest.raises(UserError, match=r"prepare\.splits\.test: .*share is 0"):
        project.prepare(splits={"test": 0})


def test_no_tokenizer_is_a_clear_line(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", many_rows(40))
    (project.layout.pretrained / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer here"):
        project.prepare()


def test_the_program_ends_with_one_line_and_status_1(project: Any, repository_root: Path) -> None:
    project.raw("all/a.csv", b"")
    program = (
        "from textmill.stages.runner import run_program\n"
        "from textmill.config.layout import find_layout\n"
        "from textmill.config.sections.prepare import PrepareConfig\n"
        "from textmill.config.sections.runtime import RuntimeConfig\n"
        "from textmill.stages.prepare import main\n"
        "config = PrepareConfig(task={'_target_': 'textmill.tasks.text_classification.TextClassification'},"
        " read={'columns': {'text': 'text', 'label': 'label'}})\n"
        "run_program('prepare', lambda: main(config, RuntimeConfig(), find_layout()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project.root, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == ["textmill prepare: error: data/raw/files/all/a.csv: the file is empty."]


def test_an_output_that_cannot_be_written_is_a_clear_line(project: Any, many_rows: Any) -> None:
    """`/proc` takes no files, not even root's."""
    from textmill.files import atomic_folder

    with pytest.raises(OSError) as error, atomic_folder(Path("/proc/textmill/prepared")):
        pass
    assert "Traceback" not in str(from_os_error(error.value)) and "/proc" in str(from_os_error(error.value))


def test_extra_fields_are_rejected_unless_allowed(project: Any, many_rows: Any) -> None:
    lines = "".join(f"{text},{label}\n" for text, label in many_rows(40))
    project.raw("all/a.csv", f"text,label\n{lines}a stray row,good,and where it comes from\n")
    project.prepare()
    [reject] = project.rejects
    assert reject["row"] == "42" and "has 3 fields, 2 are expected" in reject["reason"]
    project.prepare(read={"more_fields": True})
    assert not project.rejects
