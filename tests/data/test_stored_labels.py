"""Labels of a filled-in file, stored below a capture folder, as a corpus."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from textmill.errors import UserError
from textmill.fetching.sources.captured import CapturedSource
from textmill.selection.labelling import for_spreadsheet, from_spreadsheet, store_labels
from textmill.serving.right_answers import checked_answer
from textmill.tasks.base import Task
from textmill.tasks.multi_label_classification import MultiLabelClassification
from textmill.tasks.text_classification import TextClassification
from textmill.tasks.text_regression import TextRegression
from textmill.tasks.translation import Translation

ONE, SEVERAL = TextClassification.from_options(), MultiLabelClassification.from_options()
NUMBER, TEXT = TextRegression.from_options(), Translation.from_options(target_language="de")


def store(folder: Path, content: str, task: Task = ONE, new: bool = False) -> tuple[int, int]:
    file = folder / "to_label.csv"
    file.write_text(content, encoding="utf-8-sig")
    return store_labels(file, task, ["bad", "good"], folder / "captured", new)


def corpus(folder: Path) -> list[dict[str, Any]]:
    options = {"_target_": f"{CapturedSource.__module__}.CapturedSource", "folder": str(folder / "captured")}
    (folder / "raw").mkdir()
    CapturedSource.build(options).fetch(folder / "raw", folder)
    return [json.loads(line) for line in (folder / "raw/all/captured.jsonl").read_text().splitlines()]


def test_stored_labels_are_a_corpus_and_the_last_label_counts(tmp_path: Path) -> None:
    assert store(tmp_path, "text,right_label\ngreat film,bad\nawful film,bad\n?,remove\ndull film,\n") == (3, 1)
    assert store(tmp_path, "text;right_label;asked\ngreat film;good;05/01/2026 10:00\nfine;neutral;\n", new=True) == (
        2,
        0,
    )
    rows = corpus(tmp_path)
    assert {row["text"]: row["label"] for row in rows} == {"great film": "good", "awful film": "bad", "fine": "neutral"}
    assert {row["served_by"] for row in rows} == {"label/to_label.csv"}


@pytest.mark.parametrize("text", ["=1+1 great", "'=1", "-5 stars", "@home", "+1", "\tfine", "'tis fine", "fine = well"])
def test_text_that_a_spreadsheet_would_compute_is_written_as_text_and_comes_back(text: str) -> None:
    cell = for_spreadsheet(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t")) and from_spreadsheet(cell) == text
    assert for_spreadsheet(0.5) == 0.5


def test_stored_row_of_a_request_keeps_its_time_and_version(tmp_path: Path) -> None:
    columns = "text,right_label,request,position,asked,model,version"
    store(tmp_path, f"{columns}\ngreat film,good,18eb,2,2026-01-05T10:00:00+00:00,reviews,3\n")
    assert corpus(tmp_path) == [
        {"text": "great film", "label": "good", "time": "2026-01-05T10:00:00+00:00", "served_by": "reviews/3"}
    ]


def test_stored_labels_of_a_task_with_several_are_a_list(tmp_path: Path) -> None:
    assert store(tmp_path, 'text,right_label\ngreat film,"good, bad"\nawful film,bad\n', SEVERAL) == (2, 0)
    assert sorted(row["label"] for row in corpus(tmp_path)) == [["bad"], ["good", "bad"]]


@pytest.mark.parametrize(
    ("task", "given", "right"),
    [
        (ONE, " good ", "good"),
        (ONE, "new", ValueError("'new' is none of the labels bad, good")),
        (ONE, {"label": "good"}, ValueError("is not a label; the task has one for each input")),
        (ONE, ["good"], ValueError("is not a label; the task has one for each input")),
        (ONE, float("inf"), ValueError("has a number that is not finite")),
        (SEVERAL, ["good", "bad"], ["good", "bad"]),
        (SEVERAL, [], []),
        (SEVERAL, "good, bad", ["good", "bad"]),
        (SEVERAL, ["good", "new"], ValueError("'new' is none of the labels bad, good")),
        (SEVERAL, [["good"]], ValueError("is not a list of labels")),
        (NUMBER, 4.5, 4.5),
        (NUMBER, "4.5", "4.5"),
        (NUMBER, "many", ValueError("is not a number: 'many'")),
        (NUMBER, "inf", ValueError("is inf, not a finite number")),
        (NUMBER, [4], ValueError("is neither a number nor a text")),
        (TEXT, "Guten Tag", "Guten Tag"),
        (TEXT, 5, ValueError("is not a text")),
    ],
)
def test_right_answer_must_be_one_of_the_task(task: Task, given: Any, right: Any) -> None:
    if not isinstance(right, ValueError):
        assert checked_answer(given, task, ["bad", "good"], False) == right
        return
    with pytest.raises(ValueError, match=re.escape(str(right))):
        checked_answer(given, task, ["bad", "good"], False)
    if "none of" in str(right):
        assert checked_answer(given, task, ["bad", "good"], True) == given


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,right_label\ngreat film,neutral\n", r"'neutral' is none of the labels bad, good.*--new-labels"),
        ('text,right_label\ngreat film,"[""good""]"\n', r"the answer is not a label"),
        ("text,right_label\ngreat film,good\nGreat  film,bad\n", "row 2: another row has the same text"),
        ("comment,right_label\ngreat film,good\n", "no column 'text'"),
        ("text,label\ngreat film,good\n", "no column 'right_label'"),
        ("text,right_label\ngreat film,\n", "no row has a right_label"),
    ],
)
def test_file_that_cannot_be_used_is_refused_and_nothing_stored(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        store(tmp_path, content)
    assert not (tmp_path / "captured").exists()
