"""DVC and the configuration, on a real throw-away repository."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time

import pytest
import yaml
from support.project import Project, stages_run

ALL = ["compose", "fetch", "prepare", "train", "evaluate", "export", "register"]
pytestmark = pytest.mark.slow


def tracked_runs(project: Project) -> list[dict[str, str]]:
    """Id, status and parameters of the runs in the project's main tracking store."""
    with sqlite3.connect(project.root / "mlflow.db") as database:
        runs = database.execute("SELECT run_uuid, status, name FROM runs WHERE lifecycle_stage = 'active'").fetchall()
        params = database.execute("SELECT run_uuid, key, value FROM params").fetchall()
    return [
        {"run_id": run, "status": status, "name": name, **{key: value for owner, key, value in params if owner == run}}
        for run, status, name in runs
    ]


def test_whole_pipeline_runs_once_and_then_nothing_runs(project: Project) -> None:
    for path in ("data/resolved.yaml", "data/evaluation/report.html", "data/exported/model/manifest.json"):
        assert (project.root / path).is_file(), path
    assert project.repro() == []
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        project.run("dvc", "repro")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 4, "an up-to-date `dvc repro` is slow"


def test_dag_reads_like_the_sentence(project: Project) -> None:
    edges = project.run("dvc", "dag", "--dot").stdout
    for before, after in itertools.pairwise(ALL):
        assert f'"{before}" -> "{after}"' in edges


def test_edit_of_conf_reaches_plain_repro_and_runs_only_its_stages(project: Project) -> None:
    project.edit("conf/experiment/tiny.yaml", "resamples: 100", "resamples: 120")
    assert project.repro() == ["compose", "evaluate", "export", "register"]
    assert yaml.safe_load((project.root / "data/resolved.yaml").read_text())["evaluate"]["resamples"] == 120


def test_edit_of_params_reaches_plain_repro(project: Project) -> None:
    project.edit("params.yaml", "max_epochs: null", "max_epochs: 1")
    assert stages_run(project.run("dvc", "repro", "train").stdout) == ["compose", "train"]
    assert json.loads((project.root / "data/trained/metrics.json").read_text())["epochs"] == 1


def test_comment_and_key_order_change_nothing(project: Project) -> None:
    project.edit("conf/experiment/tiny.yaml", "name: tiny-reviews\n", "# A comment.\n")
    with (project.root / "conf/experiment/tiny.yaml").open("a") as file:
        file.write("name: tiny-reviews\n")
    project.edit("params.yaml", "seed: 17\n", "")
    with (project.root / "params.yaml").open("a") as file:
        file.write("# moved to the end\nseed: 17\n")
    assert set(project.repro()) <= {"compose"}


def test_runtime_settings_run_nothing_again(project: Project) -> None:
    project.edit("conf/trainer/auto.yaml", "devices: auto", "devices: 1")
    with (project.root / "params.yaml").open("a") as file:
        file.write("runtime:\n  workers: 1\n")
    assert project.repro() == ["compose"]


def test_stage_by_hand_with_overrides(project: Project) -> None:
    project.run("python", "-m", "textmill.stages.train", "train.max_epochs=1", "seed=3")
    assert json.loads((project.root / "data/trained/metrics.json").read_text())["epochs"] == 1
    (run,) = tracked_runs(project)
    assert (run["train.seed"], run["train.max_epochs"], run["status"]) == ("3", "1", "FINISHED")


def test_params_diff_names_resolved_values(project: Project) -> None:
    project.edit("conf/experiment/tiny.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    project.run("dvc", "repro", "compose")
    diff = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert diff["data/resolved.yaml"]["train.optimizer.learning_rate"] == {"old": 0.01, "new": 0.02, "diff": 0.01}


def test_experiments_set_queue_and_temp(project: Project) -> None:
    """`-S`, a queued sweep and `--temp`: all reach the main store, and `exp show` names values."""
    project.run("dvc", "exp", "run", "--temp", "--name", "in-temp", "-S", "train.max_epochs=1")
    project.run("dvc", "exp", "run", "--queue", "-S", "seed=1,2", "-S", "train.max_epochs=1")
    project.run("dvc", "exp", "run", "--run-all", "--jobs", "1")
    runs = tracked_runs(project)
    assert sorted(run["train.seed"] for run in runs) == ["1", "17", "2"]
    assert {run["train.max_epochs"] for run in runs} == {"1"}
    assert {run["status"] for run in runs} == {"FINISHED"}
    assert any(run["name"].startswith("in-temp") for run in runs)
    shown = project.run("dvc", "exp", "show", "--csv").stdout
    header, *rows = shown.splitlines()
    assert "train.optimizer.learning_rate" in header
    assert any("in-temp" in row for row in rows)
    # The workspace itself still holds what it held.
    assert project.repro() == []


def test_unknown_experiment_names_the_nearest(project: Project) -> None:
    project.edit("params.yaml", "experiment: tiny", "experiment: tinny")
    done = project.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "params.yaml:3: experiment = 'tinny'" in done.stderr
    assert "Did you mean 'tiny'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_set_of_an_unknown_key_is_refused_with_place_and_choices(project: Project) -> None:
    done = project.run("dvc", "exp", "run", "-S", "+train.max_epoch=1", check=False)
    assert done.returncode != 0
    assert "params.yaml" in done.stderr
    assert "train.max_epoch: unknown key. Did you mean 'max_epochs'?" in done.stderr
