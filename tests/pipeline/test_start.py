"""`train.start: champion` in a real project: fetched, gone on from, recorded, refused; a second run changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.project import LENIENT_GATE, Project, write_reviews

from textmill.config.schema import START_SOURCE
from textmill.data.seen import find_seen
from textmill.errors import UserError
from textmill.fetching.sources.base import Source
from textmill.files import read_json

START = "train: {start: champion, optimizer: {learning_rate: 1.0e-9}}"


def weights(project: Project) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(project.root / "data/trained/model/model.safetensors")


@pytest.mark.slow
def test_retrain_goes_on_from_the_champion_and_adds_up_what_it_has_seen(built_project: Project, tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    ignored = shutil.ignore_patterns("mlruns", "mlflow.db*")
    shutil.copytree(built_project.root, project.root, symlinks=True, ignore=ignored)
    project.edit("conf/data/tiny.yaml", "splits: {", "splits: {method: stable, ")
    params, reviews = project.root / "params.yaml", project.root / "data/own/reviews.csv"
    params.write_text("experiment: tiny" + LENIENT_GATE + START)
    refused = project.run("textmill", "retrain", check=False)
    assert refused.returncode == 1
    lines = [line for line in refused.stderr.splitlines() if "error" in line]
    assert "train.start: tiny-reviews has no alias champion. Train and promote a first version" in lines[0]
    assert "Traceback" not in refused.stderr

    params.write_text("experiment: tiny" + LENIENT_GATE)
    assert project.run("textmill", "retrain").stdout.startswith("promoted: tiny-reviews version 1")
    first = weights(project)
    old = [row.split(",")[0] for row in reviews.read_text().splitlines()[1:]]

    params.write_text("experiment: tiny" + LENIENT_GATE + START)
    write_reviews(reviews, 360)
    head, *rows = reviews.read_text().splitlines()
    reviews.write_text("\n".join([head, *rows[100:]]) + "\n")
    done = json.loads(project.run("textmill", "retrain", "--json").stdout)
    assert (done["outcome"], done["version"]) == ("promoted", "2"), done
    for name, value in weights(project).items():
        torch.testing.assert_close(value, first[name], atol=1e-6, rtol=0, msg=f"{name} is that of version 1")
    told = json.loads(project.run("textmill", "lineage", "tiny-reviews/2", "--json").stdout)
    assert told["version"]["started_from"] == "tiny-reviews/1"
    assert told["data"]["start"] == read_json(project.root / "data/exported/model/provenance.json")["start"]["sha256"]
    links = json.loads(project.run("textmill", "verify", "tiny-reviews/2", "--json", check=False).stdout)["links"]
    assert next(link for link in links if link["name"] == "data")["status"] == "holds", links
    seen = find_seen(project.root / "data/exported/seen.parquet", [old[:100]])
    assert 50 <= seen.sum() < 100, "the training rows of version 1 that are gone, not its test rows"

    # The champion moved, and that alone changes nothing: not even if the corpus is fetched again.
    again = project.run("textmill", "retrain", "--json", check=False)
    assert (again.returncode, json.loads(again.stdout)["stages"]) == (5, [])
    project.run("dvc", "repro", "--force", "--single-item", "fetch")
    assert read_json(project.root / "data/pretrained/provenance.json")["start"]["version"] == "1"
    assert project.repro() == []

    with reviews.open("a") as file:
        file.writelines(f"an ordinary film number {number} it was,soso\n" for number in range(40))
    unlike = project.run("textmill", "retrain", check=False)
    assert unlike.returncode == 1
    assert "cannot start from tiny-reviews/2: the data has the new label(s) soso. Remove train.start" in unlike.stderr
    assert json.loads(project.run("textmill", "history", "--json").stdout)["aliases"]["champion"] == "2"

    shutil.rmtree(project.root / ".dvc/cache")
    for version in ("2", "1"):
        source = Source.build({"_target_": START_SOURCE, "model": f"tiny-reviews/{version}"})
        (folder := tmp_path / version).mkdir()
        if version == "2":
            source.fetch(folder, project.root)
            assert {"model", "seen.parquet", "textmill.json", "tokenizer.json"} <= {
                each.name for each in folder.iterdir()
            }
        else:
            with pytest.raises(UserError, match="are neither in DVC's cache nor in data/trained nor in DVC's remote"):
                source.fetch(folder, project.root)
