"""Trainings that are killed, interrupted or fail, and go on."""

from __future__ import annotations

import csv
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import make_project, run_stage

from textmill.errors import UserError

PROGRAM = Path(__file__).with_name("tiny_training.py")

# Whatever could break exactness is on: dropout, accumulation, averaging, several validations.
SETTINGS: dict[str, Any] = {
    "ema_decay": 0.9,
    "early_stopping": 5,
    "validations_per_epoch": 2,
    "batches": {"tokens": 256, "accumulate": 2},
    "max_epochs": 3,
    "checkpoint_seconds": 1e-6,
}


def start(root: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, str(PROGRAM), str(root), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def runs(root: Path) -> dict[str, str]:
    """Status of every MLflow run by its id."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_id: run.info.status for run in client.search_runs(experiments)}


def history(root: Path, name: str = "history.csv") -> list[dict[str, str]]:
    with (root / "data/trained" / name).open() as file:
        return list(csv.DictReader(file))


def checkpoint_folder(root: Path) -> Path:
    (folder,) = (root / ".dvc/tmp/textmill/checkpoints").iterdir()
    return folder


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.slow
def test_a_training_killed_twice_ends_with_the_very_bits_of_one_that_was_not(tmp_path: Path) -> None:
    whole, killed = (make_project(tmp_path / name, **SETTINGS) for name in ("whole", "killed"))
    first_run = start(whole)
    step = random.Random(os.urandom(4)).randrange(3, 10)  # within the first of three epochs
    deaths = [finish(start(killed, "step", step)), finish(start(killed, "epoch", 1))]
    assert [code for code, _ in deaths] == [-signal.SIGKILL] * 2, deaths
    assert list(runs(killed).values()) == ["RUNNING"]
    code, errors = finish(start(killed))
    assert code == 0, errors
    assert "continuing after" in errors
    assert finish(first_run)[0] == 0
    for name, load in (("final.pt", torch.load), ("data/trained/model/model.safetensors", load_file)):
        expected, found = load(whole / name), load(killed / name)
        assert expected.keys() == found.keys()
        unequal = [key for key in expected if not torch.equal(expected[key], found[key])]
        assert unequal == [], f"killed at step {step}"
    assert history(whole) == history(killed)
    assert history(whole, "curve.csv") == history(killed, "curve.csv")
    assert len(history(whole)) >= 6
    assert list(runs(killed).values()) == ["FINISHED"]
    assert not list((killed / ".dvc/tmp/textmill/checkpoints").iterdir())


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", **SETTINGS)
    finish(start(root, "step", 12))
    *_, before, newest = sorted(checkpoint_folder(root).glob("*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    code, errors = finish(start(root))
    assert code == 0, errors
    assert f"{newest} is damaged" in errors
    assert f"continuing from {before}" in errors


@pytest.mark.slow
def test_a_terminated_training_is_marked_killed_and_goes_on_in_the_same_run(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", **SETTINGS | {"max_epochs": 500})
    process = start(root)
    while process.poll() is None and not list(root.glob(".dvc/tmp/textmill/checkpoints/*/*.ckpt")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 143, errors
    assert "Traceback" not in errors
    (identifier,) = runs(root)
    assert runs(root) == {identifier: "KILLED"}
    process = start(root, "step", 1)
    finish(process)
    assert list(runs(root)) == [identifier]
    assert not (root / "data/trained").exists()


def test_a_loss_that_is_not_finite_fails_in_one_line_naming_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textmill.tasks.text_classification import TextClassification

    root = make_project(tmp_path / "project")
    loss, calls = TextClassification.loss, [0]

    def exploding(self: Any, network: Any, batch: Any) -> dict[str, torch.Tensor]:
        calls[0] += 1
        result = loss(self, network, batch)
        return replace(result, loss=result.loss * (math.nan if calls[0] == 4 else 1.0))

    monkeypatch.setattr(TextClassification, "loss", exploding)
    with pytest.raises(UserError, match="loss is nan at step 4"):
        run_stage(root)
    assert list(runs(root).values()) == ["FAILED"]
    assert not (root / "data/trained").exists()


def test_too_little_memory_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from textmill.tasks.text_classification import TextClassification

    def greedy(*_: Any) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(TextClassification, "loss", greedy)
    with pytest.raises(UserError, match=r"train\.batches\.tokens: out of memory at step 0"):
        run_stage(make_project(tmp_path / "project"))


def test_a_compiler_that_fails_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.nn.Module.compile

    def broken(*_: Any) -> Any:
        raise NotImplementedError("no kernel for this product")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled(self, backend=broken))
    with pytest.raises(UserError, match=r"train\.compile: torch.compile fails \(.*no kernel.*Set it to off"):
        run_stage(make_project(tmp_path / "project", compile="on"))


def test_a_finished_training_leaves_all_outputs_and_no_checkpoints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from textmill.files import read_json

    caplog.set_level(logging.INFO)
    root = make_project(tmp_path / "project")
    run_stage(root)
    folder = root / "data/trained"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    written = ["curve.csv", "history.csv", "metrics.json", "model/config.json", "model/model.safetensors", "run.json"]
    assert names == written
    metrics = read_json(folder / "metrics.json")
    steps = [int(row["step"]) for row in history(root, "curve.csv")]
    assert steps == sorted(set(steps))
    assert steps[-1] == metrics["steps"]
    assert metrics["padding_share"] <= 0.10
    assert metrics["weighted_f1"] == max(float(row["validation/weighted_f1"]) for row in history(root))
    assert read_json(folder / "run.json")["run_id"] == next(iter(runs(root)))
    assert "validation: weighted_f1" in caplog.text
    assert not list((root / ".dvc/tmp/textmill/checkpoints").iterdir())


@pytest.mark.slow
def test_two_ranks_share_the_rows_and_write_one_result(tmp_path: Path) -> None:
    trainer = {"devices": 2, "strategy": "ddp"}
    root = make_project(tmp_path / "project", trainer=trainer, checkpoint_seconds=1e-6)
    code, errors = finish(start(root))
    assert code == 0, errors
    samples = [int((root / f"samples-{rank}").read_text()) for rank in range(2)]
    assert samples == [2 * 200] * 2, "each counts the rows of all"
    assert list(runs(root).values()) == ["FINISHED"]
    assert (root / "data/trained/model/model.safetensors").is_file()
