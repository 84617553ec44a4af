"""Fault 8: pipelines side by side: in two worktrees with one store, in one folder, in DVC's queue."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.faults import record, rounds
from support.project import Project

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def start(project: Project, *command: str, **environment: str) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        command,
        cwd=project.root,
        env={**kept, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def runs_of(database: Path) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{database}", f"sqlite:///{database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=1000))


def test_two_worktrees_with_one_home_make_two_runs_and_two_versions(project: Project, tmp_path: Path) -> None:
    home = tmp_path / "home"
    other = Project(tmp_path / "other")
    project.run("git", "worktree", "add", "--quiet", str(other.root), "HEAD")
    for ignored in ("tiny_bert", "data/own/reviews.csv"):
        if not (other.root / ignored).exists():
            source = project.root / ignored
            shutil.copytree(source, other.root / ignored) if source.is_dir() else shutil.copy(
                source, other.root / ignored
            )
    other.edit("params.yaml", "seed: 17", "seed: 18")
    project.run("git", "worktree", "list")
    share = {"TEXTMILL_HOME": str(home)}
    cache = str(project.root / ".dvc/cache")
    other.run("dvc", "cache", "dir", "--local", cache)
    both = [
        start(project, "dvc", "repro", "--force", "--downstream", "train", **share),
        start(other, "dvc", "repro", **share),
    ]
    ends = [process.communicate(timeout=500) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    runs = runs_of(home / "mlflow.db")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    versions = {
        json.loads((one.root / "data/registered/registered.json").read_text())["version"] for one in (project, other)
    }
    assert versions == {"1", "2"}
    record(
        "8 Two pipelines in two worktrees",
        seen="nothing",
        kept="both runs and both versions, in one store and one DVC cache",
        measured="2 runs FINISHED, versions 1 and 2",
    )


def test_second_pipeline_in_one_folder_refuses_and_the_first_ends_well(project: Project) -> None:
    first = start(project, "dvc", "repro", "--force", "--single-item", "train")
    end = time.monotonic() + 120
    while not list((project.root / "data").glob(".trained.partial-*")) and not runs_started(project):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    second = project.run("dvc", "repro", "--force", "--single-item", "train", check=False)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    assert second.returncode != 0
    assert "Traceback" not in second.stderr
    assert "is busy" in second.stderr or "Unable to acquire lock" in second.stderr
    assert [run.info.status for run in runs_of(project.root / "mlflow.db")] == ["FINISHED"]
    record(
        "8 Two pipelines in one folder",
        seen=next(line for line in second.stderr.splitlines() if line.startswith("ERROR")),
        kept="the first, which ends as if alone",
        measured="1 run FINISHED, the second refused with status 1 or more",
    )


def runs_started(project: Project) -> bool:
    """Whether a run is in the store; asked without MLflow, which would make the schema beside the first process."""
    try:
        with sqlite3.connect(f"file:{project.root / 'mlflow.db'}?mode=ro", uri=True) as database:
            return bool(database.execute("select count(*) from runs").fetchone()[0])
    except sqlite3.OperationalError:
        return False


def test_queue_of_experiments_loses_no_run(project: Project) -> None:
    number, workers = rounds(2, 12), rounds(2, 4)
    seeds = ",".join(map(str, range(1, number + 1)))
    project.run("dvc", "exp", "run", "--queue", "-S", f"seed={seeds}", "-S", "train.max_epochs=1")
    project.run("dvc", "queue", "start", "-j", str(workers))
    end = time.monotonic() + 1500
    while True:
        status = project.run("dvc", "queue", "status").stdout
        if status.count("Success") + status.count("Failed") >= number:
            break
        assert time.monotonic() < end, status
        time.sleep(1)
    logs = [project.run("dvc", "queue", "logs", word, check=False).stdout for word in names_of(status)]
    assert status.count("Success") == number, (status, logs)
    runs = runs_of(project.root / "mlflow.db")
    assert sorted(run.data.params["train.seed"] for run in runs) == sorted(map(str, range(1, number + 1)))
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["textmill.registered"] for run in runs}) == number
    record(
        f"8 `dvc queue start -j {workers}` with {number} experiments",
        seen="nothing",
        kept="every run and version",
        measured=f"{number} of {number} runs FINISHED, {number} versions",
    )


def names_of(status: str) -> list[str]:
    return [line.split()[0] for line in status.splitlines()[1:] if line.strip()]
