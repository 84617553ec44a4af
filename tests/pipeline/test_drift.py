"""Drift of new texts from a version's training data, without that data at hand."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.project import NEGATIVE, Project
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.errors import UserError
from textmill.evaluation.reference import Reference, features, read_reference
from textmill.serving.capture import write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(built_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder alone, far from project and data."""
    return Path(shutil.copytree(built_project.root / "data/exported/model", tmp_path_factory.mktemp("drift") / "model"))


@pytest.fixture(scope="module")
def reviews(built_project: Project) -> pd.DataFrame:
    return pd.read_csv(built_project.root / "data/own/reviews.csv")


def drift(model: Path | str, file: Path, *options: str) -> tuple[int, dict[str, Any]]:
    arguments = ["drift", "--reference", str(model), str(file), "--json", *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)


def flagged(found: dict[str, Any]) -> set[tuple[str, str]]:
    return {(measure["subject"], measure["name"]) for measure in found["measures"] if measure["flagged"]}


@pytest.mark.parametrize("seed", range(3))
def test_random_half_of_the_same_data_is_no_drift(
    model: Path, reviews: pd.DataFrame, tmp_path: Path, seed: int
) -> None:
    file = tmp_path / "half.csv"
    reviews.sample(frac=0.5, random_state=seed).to_csv(file, index=False)
    status, found = drift(model, file)
    assert (status, found["verdict"], flagged(found)) == (0, "no drift", set())
    assert found["rows"] == 120
    subjects = {measure["subject"] for measure in found["measures"]}
    assert subjects == {"length of text", "words of text", "target label", "answer label", "raw outputs"}


def test_other_labels_are_drift(model: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    reviews[reviews.label == "bad"].to_csv(file, index=False)
    status, found = drift(model, file)
    assert (status, found["verdict"]) == (3, "drift")
    assert ("target label", "population stability index") in flagged(found)
    assert ("length of text", "population stability index") not in flagged(found)


def test_other_texts_are_drift_and_their_words_are_named(model: Path, tmp_path: Path) -> None:
    file, page = tmp_path / "tickets.txt", tmp_path / "drift.html"
    chooser = np.random.default_rng(1)
    other = ["invoice", "refund", "parcel", "delivery", "broken", NEGATIVE[0]]
    file.write_text("".join(f"{' '.join(chooser.choice(other, 25))}\n" for _ in range(80)))
    status, found = drift(model, file, "--html", str(page))
    assert status == 3
    expected = {("length of text", "population stability index"), ("words of text", "word divergence")}
    assert flagged(found) >= expected | {("words of text", "more unseen words")}
    assert set(other[:-1]) == set(found["new_words"])
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "refund" in html


def test_every_format_says_the_same(model: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    frame = reviews.head(60)
    frame.to_csv(tmp_path / "new.csv", index=False)
    frame.to_csv(tmp_path / "new.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "new.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "new.parquet")
    (tmp_path / "new.txt").write_text("\n".join(frame.text))
    found = {name: drift(model, tmp_path / f"new.{name}")[1] for name in ("csv", "tsv", "jsonl", "parquet", "txt")}
    expected = found["csv"]["measures"]
    assert all(found[name]["measures"] == expected for name in ("tsv", "jsonl", "parquet"))
    assert {m["subject"] for m in expected} - {m["subject"] for m in found["txt"]["measures"]} == {"target label"}


def test_columns_of_other_names(model: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    reviews.head(60).rename(columns={"text": "comment", "label": "verdict"}).to_csv(file, index=False)
    with pytest.raises(UserError, match=r"no column 'text'.*--column text=FILE-COLUMN"):
        drift(model, file)
    found = drift(model, file, "--column", "text=comment", "--column", "label=verdict")[1]
    assert "target label" in {measure["subject"] for measure in found["measures"]}


def test_few_and_empty_rows(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "few.csv"
    file.write_text("text\ngreat film\n   \nawful plot\n")
    status, found = drift(model, file)
    assert (status, found["verdict"], found["rows"], found["skipped"]) == (4, "too few rows", 2, 1)
    file.write_text("text\n \n")
    with pytest.raises(UserError, match="has no row with a text"):
        drift(model, file)


def test_large_file_is_sampled(model: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    reviews.to_csv(file, index=False)
    assert drift(model, file, "--rows", "50")[1]["rows"] == 50


def test_reference_that_is_missing_or_tampered_with(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "new.txt"
    file.write_text("great film\n" * 40)
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / "reference.json").write_text("{}")
    with pytest.raises(UserError, match=r"reference\.json: the file was changed"):
        drift(folder, file)
    with pytest.raises(UserError, match=r"not a valid reference\.json"):
        read_reference(folder)
    (folder / "reference.json").unlink()
    with pytest.raises(UserError, match="exported without statistics"):
        read_reference(folder)


def test_registered_version_as_reference(built_project: Project, reviews: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "half.csv"
    reviews.sample(frac=0.5, random_state=9).to_csv(file, index=False)
    done = built_project.run("textmill", "drift", "--reference", "challenger", str(file))
    assert "Verdict: no drift." in done.stdout


def test_reference_holds_no_text(model: Path, reviews: pd.DataFrame) -> None:
    stored = (model / "reference.json").read_text()
    assert isinstance(read_reference(model), Reference)
    assert not [text for text in reviews.text if text in stored]


def test_outputs_of_any_shape_become_short_vectors() -> None:
    chooser = np.random.default_rng(0)
    assert features({"logits": chooser.random((7, 3), np.float32)}).shape == (7, 3)
    assert features({"score": chooser.random(7, np.float32)}).shape == (7, 1)
    assert features({"a": chooser.random((7, 3), np.float32), "b": chooser.random((7, 2), np.float32)}).shape == (7, 5)
    tokens = chooser.random((7, 5, 3), np.float32)
    tokens[:, 3:] = np.nan  # padding
    assert np.allclose(features({"tokens": tokens}), tokens[:, :3].mean(axis=1))
    wide = features({"logits": chooser.random((7, 5000), np.float32)})
    assert wide.shape == (7, 32)


def captured(folder: Path, batches: list[list[str]], first: datetime = datetime(2026, 1, 5, tzinfo=UTC)) -> Path:
    """Write one batch of texts a day with the code of the server."""
    for day, texts in enumerate(batches):
        rows = [
            {
                "request": f"{day:04x}{place:04x}",
                "position": 0,
                "time": first + timedelta(days=day, seconds=place),
                "model": "tiny-reviews",
                "version": "1",
                "answer": "{}",
                "text": text,
            }
            for place, text in enumerate(texts)
        ]
        (folder / "requests").mkdir(parents=True, exist_ok=True)
        write_rows(folder / "requests", rows)
    return folder


def over_time(model: Path, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    arguments = ["drift", "--reference", str(model), "--captured", str(folder), "--json", *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout)


def test_captured_change_alarms_within_500_requests_with_page_and_gauges(
    model: Path, reviews: pd.DataFrame, tmp_path: Path
) -> None:
    quiet = [reviews.sample(100, random_state=seed).text.tolist() for seed in range(4)]
    chooser = np.random.default_rng(1)
    words = ["invoice", "refund", "parcel", "delivery", "broken"]
    changed = [[" ".join(chooser.choice(words, 25)) for _ in range(100)] for _ in range(5)]
    status, found = over_time(model, captured(tmp_path / "quiet", quiet))
    assert (status, [look["verdict"] for look in found["looks"]]) == (0, ["no drift"] * 4)
    page, gauges = tmp_path / "drift.html", tmp_path / "drift.prom"
    folder = captured(tmp_path / "changed", quiet + changed)
    status, found = over_time(model, folder, "--html", str(page), "--gauges", str(gauges))
    verdicts = [look["verdict"] for look in found["looks"]]
    assert (status, verdicts[:4]) == (3, ["no drift"] * 4)
    assert "drift" in verdicts[4:]
    assert [look["rows"] for look in found["looks"][:3]] == [100, 200, 200]
    html = page.read_text()
    assert html.count("data:image/png;base64,") == len(found["looks"][-1]["measures"])
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert f'textmill_drift_alarm{{reference="{model}"}} 1.0' in gauges.read_text()


def test_captured_week_and_few_requests(model: Path, reviews: pd.DataFrame, tmp_path: Path) -> None:
    folder = captured(tmp_path / "few", [reviews.text.tolist()[:8], ["  ", *reviews.text.tolist()[8:15]]])
    status, found = over_time(model, folder)
    assert (status, [look["requests"] for look in found["looks"]], found["skipped"]) == (4, [8, 7], 1)
    assert [look["requests"] for look in over_time(model, folder, "--by", "week")[1]["looks"]] == [15]


def test_captured_folder_that_is_empty_new_or_of_another_task(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no captured requests"):
        over_time(model, tmp_path)
    with pytest.raises(UserError, match="no complete day yet"):
        over_time(model, captured(tmp_path / "new", [["great film"]], datetime.now(UTC)))
    folder = captured(tmp_path / "other", [["great film"]])
    (file,) = folder.glob("requests/*/*.parquet")
    pd.read_parquet(file).rename(columns={"text": "question"}).to_parquet(file)
    with pytest.raises(UserError, match="no column 'text'"):
        over_time(model, folder)
    with pytest.raises(UserError, match="give a file or --captured"):
        over_time(model, folder, str(file))
