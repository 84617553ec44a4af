"""`textmill label`: from captured requests to a CSV, and from the filled-in CSV to a corpus."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.tiny_export import RUNTIME, build_evaluated_project, export_config
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.data.corrections import ANSWER, REMOVE
from textmill.errors import UserError
from textmill.fetching.sources.captured import CapturedSource
from textmill.serving.capture import write_rows
from textmill.stages import export

pytestmark = pytest.mark.slow

FIRST = datetime(2026, 1, 5, tzinfo=UTC)
TEXTS = [
    "great film with a lovely story about a dog",
    "GREAT film with a lovely story about a dog!",
    "awful plot and a dull cast",
    "zyx wvu tsr qpo nml kji",
    "dull acting in a great film",
    "a wonderful cast, an awful story",
    "   ",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = build_evaluated_project(tmp_path_factory.mktemp("label") / "project")
    export.main(export_config(), RUNTIME, layout)
    return layout.exported / "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write captured requests as the server does: one has feedback, one another version answered, one is damaged."""
    sure = json.dumps({"label": "bad", "probability": 1.0, "probabilities": {"bad": 1.0, "good": 0.0}})
    rows: list[dict[str, Any]] = [
        {
            "request": f"{place:024x}",
            "position": 0,
            "time": FIRST + timedelta(days=place),
            "model": "tiny-reviews",
            "version": "1",
            "answer": "{damaged" if place == 5 else sure,
            "text": text,
        }
        for place, text in enumerate(TEXTS)
    ]
    folder = tmp_path / "captured"
    (folder / "requests").mkdir(parents=True)
    (folder / "feedback").mkdir()
    write_rows(folder / "requests", rows)
    feedback = {"request": rows[2]["request"], "position": 0, "time": FIRST + timedelta(days=20), "answer": '"bad"'}
    write_rows(folder / "feedback", [feedback])
    return folder


def label(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["label", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def corpus(folder: Path, destination: Path) -> dict[str, dict[str, Any]]:
    source = CapturedSource.build({"_target_": f"{CapturedSource.__module__}.CapturedSource", "folder": str(folder)})
    destination.mkdir()
    source.fetch(destination, destination)
    rows = map(json.loads, (destination / "all/captured.jsonl").read_text().splitlines())
    return {row["text"]: row for row in rows}


def test_filled_in_rows_become_a_corpus(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "to_label.csv"
    found = label("--model", model, "--captured", folder, "--rows", "20", "--output", output)
    assert (found["among"], found["skipped"], len(found["rows"])) == (5, 1, 4), "a near-duplicate comes once"
    by_text = {row["text"]: row for row in found["rows"]}
    assert TEXTS[2] not in by_text, "it has feedback"
    assert len({TEXTS[0], TEXTS[1]} & by_text.keys()) == 1
    novel = by_text[TEXTS[3]]
    assert novel["novelty"] == 1.0 == novel["score"]
    assert novel["new_words"] == "zyx wvu tsr qpo nml"
    assert [row["score"] for row in found["rows"]] == sorted((row["score"] for row in found["rows"]), reverse=True)
    assert by_text[TEXTS[5]]["disagreement"] == 0.0, "its captured answer is damaged"
    assert by_text[TEXTS[4]]["disagreement"] > 0.0

    table = pd.read_csv(output, dtype=str, keep_default_na=False)
    assert set(table[ANSWER]) == {""}
    answers = {TEXTS[3]: REMOVE, TEXTS[4]: "good", TEXTS[5]: " bad "}
    table.assign(**{ANSWER: [answers.get(text, "") for text in table.text]}).to_csv(output, index=False, sep=";")
    stored = label("--model", model, "--captured", folder, "--done", output)
    assert (stored["rows"], stored["removed"]) == (3, 1)
    rows = corpus(folder, tmp_path / "raw")
    assert {text: row["label"] for text, row in rows.items()} == {TEXTS[2]: "bad", TEXTS[4]: "good", TEXTS[5]: "bad"}
    assert rows[TEXTS[4]]["time"] == (FIRST + timedelta(days=4)).isoformat()
    assert rows[TEXTS[4]]["served_by"] == "tiny-reviews/1"

    again = label("--model", model, "--captured", folder, "--rows", "20", "--output", tmp_path / "again.csv")
    assert [row["text"] for row in again["rows"]] == [text for text in TEXTS[:2] if text in by_text]
    for file in (folder / "requests").glob("*/*.parquet"):  # the server removes old requests
        file.unlink()
    assert corpus(folder, tmp_path / "later").keys() == {TEXTS[4], TEXTS[5]}, "labels stay"


def test_texts_of_a_file_can_be_labelled_twice(model: Path, tmp_path: Path) -> None:
    file, output, folder = tmp_path / "pool.txt", tmp_path / "to_label.csv", tmp_path / "captured"
    file.write_text("\n".join(TEXTS[2:]))
    found = label(file, "--model", model, "--other", model, "--output", output)
    assert len(found["rows"]) == 1, "a tenth, rounded up"
    table = pd.read_csv(output, dtype=str, keep_default_na=False)
    for answer in ("good", "bad"):
        table.assign(**{ANSWER: answer}).to_csv(output, index=False)
        assert label("--model", model, "--captured", folder, "--done", output)["rows"] == 1
    [row] = corpus(folder, tmp_path / "raw").values()
    assert (row["label"], row["served_by"]) == ("bad", "label/to_label.csv"), "the last label counts"


def test_files_that_cannot_be_used_are_one_line(model: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "to_label.csv"
    with pytest.raises(UserError, match="give a file or --captured, and not both"):
        label("--model", model)
    with pytest.raises(UserError, match="no captured requests"):
        label("--model", model, "--captured", tmp_path)
    label("--model", model, "--captured", folder, "--output", output)
    with pytest.raises(UserError, match="exists, perhaps with labels"):
        label("--model", model, "--captured", folder, "--output", output)
    with pytest.raises(UserError, match="no row has a right_label"):
        label("--model", model, "--captured", folder, "--done", output)
    with pytest.raises(UserError, match="needs --captured"):
        label("--model", model, "--done", output)
