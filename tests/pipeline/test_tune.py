"""`textmill tune` as it is typed, in a project of its own: real trainings, real kills, a real store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.project import Project, build_project, inherited_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SPACE = """space:
  train.optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
  train.batches.tokens: {choices: [128, 256]}
metric: loss
mode: min
pruner: none
"""
PRUNED = """space:
  train.optimizer.learning_rate: {choices: [0.01, 1.0e-7]}
metric: loss
mode: min
sampler: random
startup: 1
"""
FAILING = """space:
  model.pretrained: {choices: [./tiny_bert, ./tiny_bart]}
sampler: random
"""
TUNE = ("textmill", "tune", "--space")


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory, repository_root: Path) -> Project:
    """The tiny project with search spaces; no stage has run."""
    project = build_project(tmp_path_factory.mktemp("laid") / "project", repository_root)
    for name, text in (("small", SPACE), ("pruned", PRUNED), ("failing", FAILING)):
        (project.root / f"conf/tune/{name}.yaml").write_text(text)
    return project


@pytest.fixture
def project(laid: Project, tmp_path: Path) -> Project:
    """A copy of it for a test."""
    shutil.copytree(laid.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


def start(project: Project, *options: str) -> subprocess.Popen[str]:
    environment = inherited_environment() | {"OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("textmill")), "tune", "--space", *options]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=project.root, env=environment, **pipes)


def wait_for(project: Project, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if list((project.root / ".dvc/tmp/textmill/tune").glob(pattern)):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"no {pattern}")


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(done.stdout))


def runs(root: Path) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("tune")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


LONG = ("small", "train.max_epochs=12", "train.checkpoint_seconds=0.2", "--trials", "3", "--json")


@pytest.fixture(scope="module")
def whole(laid: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Any]]:
    """A study that was not cut off, its best trial adopted."""
    project = Project(tmp_path_factory.mktemp("whole") / "project")
    shutil.copytree(laid.root, project.root, symlinks=True)
    return project, document(project.run(*TUNE, *LONG, "--adopt", "tuned"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_tune_cut_off_anywhere_the_same_command_gives_the_same_trials(
    project: Project, whole: tuple[Project, dict[str, Any]], number: signal.Signals
) -> None:
    process = start(project, *LONG)
    wait_for(project, "tiny-reviews-small/checkpoints/0/*/step-*.json", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "Traceback" not in errors
    before = {run.info.run_id: run.info.status for run in runs(project.root)}
    if number != signal.SIGKILL:
        assert set(before.values()) == {"KILLED"}
        assert "interrupted; the same command continues it" in errors
        assert not list((project.root / ".dvc/tmp/textmill/tune/.work").iterdir())

    found, expected = document(project.run(*TUNE, *LONG)), whole[1]
    picked = [[(trial["settings"], trial["value"]) for trial in each["trials"]] for each in (found, expected)]
    assert picked[0] == picked[1]
    after = {run.info.run_id: run for run in runs(project.root)}
    assert before.keys() <= after.keys(), "the study and the trial continue in their runs"
    assert len(after) == 4
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert {run.data.tags.get("mlflow.parentRunId") for run in after.values()} == {None, found["run_id"]}
    assert not (project.root / ".dvc/tmp/textmill/tune/tiny-reviews-small").exists()


def test_tune_adopted_experiment_composes_to_the_best_trial(whole: tuple[Project, dict[str, Any]]) -> None:
    project, found = whole
    best = found["trials"][found["best"]]
    assert best["value"] == min(trial["value"] for trial in found["trials"])
    assert found["adopted"] == "conf/experiment/tuned.yaml"
    project.run("python", "-m", "textmill.stages.compose", "experiment=tuned")
    resolved = yaml.safe_load((project.root / "data/resolved.yaml").read_text())
    assert resolved["train"]["optimizer"]["learning_rate"] == best["settings"]["train.optimizer.learning_rate"]
    assert resolved["train"]["batches"]["tokens"] == best["settings"]["train.batches.tokens"]
    assert resolved["train"]["max_epochs"] == 12


def test_tune_leaves_the_store_to_mlflow(whole: tuple[Project, dict[str, Any]]) -> None:
    project, found = whole
    [run] = [run for run in runs(project.root) if run.info.run_id == found["run_id"]]
    assert run.data.metrics["best/loss"] == found["trials"][found["best"]]["value"]
    with sqlite3.connect(project.root / "mlflow.db") as database:
        [(revision,)] = database.execute("SELECT version_num FROM alembic_version").fetchall()
        assert database.execute("SELECT count(*) FROM trials").fetchone() == (3,)
    project.run("mlflow", "db", "upgrade", "sqlite:///mlflow.db")
    with sqlite3.connect(project.root / "mlflow.db") as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(revision,)]
        assert database.execute("SELECT count(*) FROM trials").fetchone() == (3,)
    subjects = json.loads(project.run("textmill", "doctor", "--json", check=False).stdout)["subjects"]
    named = {subject["subject"]: subject for subject in subjects}
    assert not named["store"]["findings"]
    assert not named["runs"]["findings"]


def test_tune_study_with_other_settings_is_one_line(whole: tuple[Project, dict[str, Any]]) -> None:
    project, _ = whole
    done = project.run(*TUNE, *LONG, "train.max_epochs=2", check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()[-1:]
    assert "study tiny-reviews-small: begun with another train.max_epochs. Name another study by --study" in line


def test_tune_pruned_trial_ends_before_its_training(project: Project) -> None:
    options = ("train.max_epochs=6", "--trials", "6", "--json")
    found = document(project.run(*TUNE, "pruned", *options))
    states = {trial["state"] for trial in found["trials"]}
    assert states == {"complete", "pruned"}
    for trial in found["trials"]:
        validations = len(trial["validations"])
        assert validations == 6 if trial["state"] == "complete" else validations < 6
    steps = {trial["number"]: _last_step(project, trial["run_id"]) for trial in found["trials"]}
    longest = max(steps.values())
    assert all(steps[trial["number"]] < longest for trial in found["trials"] if trial["state"] == "pruned")
    assert all(steps[trial["number"]] == longest for trial in found["trials"] if trial["state"] == "complete")


def _last_step(project: Project, run_id: str) -> int:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    return max(int(metric.step) for metric in client.get_metric_history(run_id, "train/loss"))


def test_tune_failing_trial_is_one_line_and_the_study_continues(project: Project) -> None:
    done = project.run(*TUNE, "failing", "train.max_epochs=1", "--trials", "5", "--json")
    found = document(done)
    states = [trial["state"] for trial in found["trials"]]
    assert len(states) == 5
    assert set(states) == {"complete", "fail"}
    lines = [line for line in done.stderr.splitlines() if ": failed (" in line]
    assert len(lines) == states.count("fail")
    assert all("tiny_bart" in line for line in lines)
    assert "Traceback" not in done.stderr


def test_tune_two_processes_share_one_study(project: Project) -> None:
    options = ("small", "train.max_epochs=2", "--trials", "6", "--json")
    both = [start(project, *options) for _ in range(2)]
    outputs = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    found = [json.loads(text) for text, _ in outputs]
    assert found[0]["run_id"] == found[1]["run_id"]
    complete = document(project.run(*TUNE, *options))
    assert [trial["state"] for trial in complete["trials"]] == ["complete"] * 6
    lines = [[line for line in errors.splitlines() if line.startswith("trial ")] for _, errors in outputs]
    assert len(lines[0]) + len(lines[1]) == 6
    assert all(lines), "each of them trained"
    every = runs(project.root)
    assert len(every) == 7
    assert {run.info.status for run in every} == {"FINISHED"}


def test_tune_two_processes_may_try_the_same_values(project: Project) -> None:
    one = "space:\n  train.optimizer.learning_rate: {choices: [0.01]}\n"
    (project.root / "conf/tune/one.yaml").write_text(one)
    both = [start(project, "one", "train.max_epochs=1", "--trials", "4", "--json") for _ in range(2)]
    outputs = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    trials = document(project.run(*TUNE, "one", "train.max_epochs=1", "--trials", "4", "--json"))["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 4
    assert len({trial["value"] for trial in trials}) == 1


def test_tune_trial_trains_in_the_process_of_the_study(project: Project) -> None:
    """The project's launcher and devices are those of the stage `train`; a study has the processes that one starts."""
    settings = "launcher: ray\nruntime: {launcher: {processes: 2}, trainer: {devices: 2, strategy: ddp}}\n"
    with (project.root / "params.yaml").open("a") as file:
        file.write(settings)
    done = project.run(*TUNE, "small", "train.max_epochs=1", "--trials", "1", "--json")
    assert [trial["state"] for trial in document(done)["trials"]] == ["complete"], done.stderr
    assert "workers of Ray" not in done.stderr and "rank" not in done.stderr.lower()
    [trial] = [run for run in runs(project.root) if "mlflow.parentRunId" in run.data.tags]
    assert trial.info.status == "FINISHED"


def test_tune_without_the_extra_is_one_line(project: Project, tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text("raise ImportError\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = project.run(*TUNE, "small", check=False, env={"PYTHONPATH": path})
    assert done.returncode == 1
    said = "Optuna is not installed. Run pip install --constraint constraints.txt -e '.[tune]'."
    assert done.stderr == f"textmill: error: textmill tune: {said}\n"
