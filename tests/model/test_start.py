"""`train.start`: which versions a training may go on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_export import MODEL, RUNTIME, STATE, TASK, build_evaluated_project

from textmill.config.layout import Layout
from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.data.tokenizing import FILE
from textmill.errors import UserError
from textmill.files import read_json, write_json
from textmill.training.loading import MODEL_FOLDER, WEIGHTS_FILE
from textmill.training.start import start_weights
from textmill.training.trainer import Training


def configured(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"seed": 1, "task": TASK, "model": MODEL, "start": "champion", **changes})


@pytest.fixture
def project(tmp_path: Path) -> Layout:
    """A project whose own trained network is the version to start from."""
    layout = build_evaluated_project(tmp_path / "project")
    start = layout.pretrained / "start"
    shutil.copytree(layout.trained / MODEL_FOLDER, start / MODEL_FOLDER)
    (start / FILE).write_bytes((layout.prepared / "tokenizer" / FILE).read_bytes())
    write_json(start / "textmill.json", {"task": TASK, "model": MODEL | {"dropout": 0.5}, "state": STATE})
    provenance = layout.pretrained / "provenance.json"
    write_json(provenance, read_json(provenance) | {"start": {"origin": "tiny", "version": "4", "sha256": "0" * 64}})
    return layout


def test_training_starts_from_the_weights_and_counts_them_in_its_fingerprint(project: Layout) -> None:
    prepared, runtime = Prepared(project.prepared), RUNTIME
    weights = start_weights(configured(), prepared, project.pretrained)
    assert weights is not None
    assert start_weights(configured(start=None), prepared, project.pretrained) is None

    def training() -> Training:
        return Training(configured(precision="32-true"), runtime, prepared, project.pretrained, project.checkpoints)

    first = training()
    assert first.fingerprint == training().fingerprint
    stored = read_weights(weights)
    for name, value in first._network().state_dict().items():
        assert torch.equal(value, stored[name]), name
    save_file({name: value + 1 for name, value in stored.items()}, weights)
    assert training().fingerprint != first.fingerprint
    save_file({name: value for name, value in stored.items() if "output" not in name}, weights)
    with pytest.raises(UserError, match=r"train.start: the weights to start from do not fit the network .*output"):
        training()._network()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {**MODEL, "pooling": "cls"}}, "its model.pooling is None, not cls"),
        ({"model": {**MODEL, "lora": {"rank": 2}, "dropout": 0.2, "pretrained": "./other"}}, None),
        ({"task": {"_target_": "textmill.tasks.text_regression.TextRegression"}}, "its task is TextClassification"),
        ({"state": {"labels": ["bad", "good", "soso"]}}, "the data has the new label(s) soso"),
        ({"state": {"labels": ["good"]}}, "its labels are ['bad', 'good'], not ['good']"),
        ({"tokenizer": True}, "its tokenizer is another one"),
        ({"missing": True}, "the version to start from was not fetched"),
    ],
)
def test_version_that_does_not_fit_is_refused_in_one_line(
    project: Layout, change: dict[str, Any], reason: str | None
) -> None:
    if state := change.pop("state", None):
        write_json(project.prepared / "state.json", state)
    if change.pop("tokenizer", None):
        path = project.prepared / "tokenizer" / FILE
        path.write_text(path.read_text().replace("wonderful", "wonderous"))
    if change.pop("missing", None):
        (project.pretrained / "start" / MODEL_FOLDER / WEIGHTS_FILE).unlink()
    config, prepared = configured(**change), Prepared(project.prepared)
    if reason is None:
        assert start_weights(config, prepared, project.pretrained) is not None
        return
    with pytest.raises(UserError) as refused:
        start_weights(config, prepared, project.pretrained)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
