"""Corrections of labels: the rows that change, those that are removed, and one clear line for each bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError
from textmill.fetching.corpus import fetch_corpus

NAME = "data/own/fixed.csv"


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def answers(project: Any, rows: list[dict[str, str]]) -> None:
    write(project.layout.raw / "corrections/fixed.csv", rows)


def answer(row: Any, label: str, **more: str) -> dict[str, str]:
    return {"id": row.id, "text": row.text, "right_label": label, **more}


@pytest.mark.parametrize("method", ["shuffled", "stable"])
def test_correct_labels_change_and_removed_rows_go_while_all_keep_their_split(
    project: Any, many_rows: Any, whole: Any, method: str
) -> None:
    project.rows("all/a.csv", many_rows(120))
    project.prepare(splits={"method": method})
    before = whole().set_index("id", drop=False)
    train, test = before[before.split == "train"], before[before.split == "test"]
    other = {"good": "bad", "bad": "good"}
    fixed = [train.iloc[0], train.iloc[1], test.iloc[0]]
    gone, kept, same = train.iloc[2], train.iloc[3], train.iloc[4]
    rows = [answer(row, f" {other[row.label]} ") for row in fixed]
    rows += [answer(gone, "remove"), answer(kept, ""), answer(same, same.label)]
    answers(project, rows)
    found = project.prepare(splits={"method": method}, corrections=NAME, max_rejected=0.0)
    after = whole().set_index("id", drop=False)
    assert after.split.to_dict() == before.drop(gone.id).split.to_dict()
    expected = before.drop(gone.id).label.to_dict() | {row.id: other[row.label] for row in fixed}
    assert after.label.to_dict() == expected
    assert found.statistics["corrections"] == {"labels": 3, "removed": 1}
    assert [(row["reason"], row["text"]) for row in project.rejects] == [
        ("was removed by prepare.corrections", gone.text)
    ]
    report = (found.folder / "report/README.md").read_text()
    assert "3 rows have another label by `prepare.corrections`, 1 were removed." in report


def test_correct_row_with_label_shares_gets_all_of_the_right_label(project: Any, many_rows: Any, whole: Any) -> None:
    lines = [
        json.dumps({"id": f"r{number}", "text": text, "label": label, "shares": json.dumps({label: 3})})
        for number, (text, label) in enumerate(many_rows(60))
    ]
    project.raw("all/a.jsonl", "\n".join(lines))
    answers(project, [{"id": "r0", "right_label": "good"}])
    columns = {"id": "id", "text": "text", "label": "label", "label_shares": "shares"}
    project.prepare(columns=columns, corrections=NAME)
    row = whole().set_index("id").loc["r0"]
    assert (row.label, json.loads(row.label_shares)) == ("good", {"good": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "all/a.csv:999"}, "'all/a.csv:999' is the id of no usable row"),
        ({"text": "another text"}, "'all/a.csv:2' has another text in the data"),
        ({"right_label": "goood"}, "'goood' (row 1 of data/own/fixed.csv) is none of the labels bad, good"),
        ({"right_label": None}, "data/own/fixed.csv has no column 'right_label'"),
        ({"id": None}, "data/own/fixed.csv has no column 'id'"),
        ("twice", "data/own/fixed.csv has two answers for the id 'all/a.csv:2'"),
        ("nothing", "data/own/fixed.csv was not fetched"),
    ],
)
def test_correct_refuses_bad_file_in_one_line(project: Any, many_rows: Any, change: Any, message: str) -> None:
    rows = many_rows(60)
    project.rows("all/a.csv", rows)
    row = {"id": "all/a.csv:2", "text": rows[0][0], "right_label": "good"}
    if change != "nothing":
        more = change if isinstance(change, dict) else {}
        good = {key: value for key, value in {**row, **more}.items() if value is not None}
        answers(project, [good, good] if change == "twice" else [good])
    with pytest.raises(UserError) as caught:
        project.prepare(corrections=NAME)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not project.layout.prepared.exists()


def test_correct_refuses_a_task_without_labels(project: Any, many_rows: Any) -> None:
    project.rows("all/a.csv", many_rows(60))
    task = {"_target_": "textmill.tasks.semantic_search.SemanticSearch"}
    with pytest.raises(UserError, match="semantic_search has no column 'label'"):
        project.prepare(columns={"text_a": "text", "text_b": "label"}, task=task, corrections=NAME)


def test_fetch_brings_corrections_with_their_digest_or_names_the_missing_file(project: Any) -> None:
    source = {"_target_": "textmill.fetching.sources.files.FilesSource", "files": {"all": "data/own/a.csv"}}
    write(project.root / "data/own/a.csv", [{"text": "a", "label": "b"}])
    config = FetchConfig.model_validate({"source": source, "corrections": NAME})
    with pytest.raises(UserError, match=r"fixed.csv: no such file|no such file.*fixed.csv"):
        fetch_corpus(config, project.layout)
    write(project.root / NAME, [{"id": "1", "right_label": "b"}])
    fetch_corpus(config, project.layout)
    noted = json.loads((project.layout.raw / "provenance.json").read_text())["corrections"]
    assert noted["origin"] == NAME and len(noted["sha256"]) == 64
    assert (project.layout.raw / "corrections/fixed.csv").is_file()
