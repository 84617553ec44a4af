"""What the store says after a kill: no untried version, no lost run, no step twice, one challenger."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.faults import record
from support.project import Project
from support.tiny_registry import NAME, RUNTIME, aliases, list_versions, store, textmill

from textmill.config.layout import Layout
from textmill.files import read_json, write_json
from textmill.registry.promotion.challenger import make_challenger
from textmill.registry.promotion.lock import promotion_lock
from textmill.registry.runs.tracking import stage_run
from textmill.registry.versions.versions import RegisteredVersion

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def start_stage(project: Project, stage: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", f"textmill.stages.{stage}"]
    return subprocess.Popen(command, cwd=project.root, env=environment, stderr=subprocess.PIPE, text=True)


def kill_when(process: subprocess.Popen[str], reached: Any) -> None:
    """SIGKILL the process and its children as soon as `reached()`."""
    import psutil

    end = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.005)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family:
        child.kill()
    process.communicate()


def is_tried(process: subprocess.Popen[str]) -> bool:
    import psutil

    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # has ended since, or is a zombie
            if "fresh_process.py" in " ".join(child.cmdline()):
                return True
    return False


def client_of(project: Project) -> Any:
    import mlflow

    uri = f"sqlite:///{project.root / 'mlflow.db'}"
    return mlflow.MlflowClient(uri, uri)  # an earlier test may have set another registry


def logged_models(project: Project) -> list[Any]:
    experiments = [experiment.experiment_id for experiment in client_of(project).search_experiments()]
    return list(client_of(project).search_logged_models(experiments))


def test_killed_registration_leaves_nothing_after_the_next(project: Project) -> None:
    models = project.root / "mlruns"
    first = start_stage(project, "register")
    kill_when(first, lambda: list(models.glob("*/models/m-*")))  # while the model is logged
    assert len(logged_models(project)) == 1
    assert client_of(project).search_registered_models() == []
    second = start_stage(project, "register")
    kill_when(second, lambda: is_tried(second))
    (version,) = client_of(project).search_model_versions(f"name = '{NAME}'")
    assert client_of(project).get_registered_model(NAME).aliases == {}
    assert len(logged_models(project)) == 1  # that of the version; the first was removed
    refused = textmill("predict", "great film", "--model", f"models:/{NAME}/{version.version}", cwd=project.root)
    assert refused.returncode == 1
    assert "never tried" in refused.stderr
    done = start_stage(project, "register")
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    (kept,) = client_of(project).search_model_versions(f"name = '{NAME}'")
    assert client_of(project).get_registered_model(NAME).aliases == {"challenger": kept.version}
    assert [model.model_id for model in logged_models(project)] == [str(kept.source).removeprefix("models:/")]
    assert textmill("predict", "great film", "--model", f"models:/{NAME}@challenger", cwd=project.root).returncode == 0
    record(
        "4 SIGKILL during a registration",
        seen="`register: removed what an interrupted registration left`",
        kept="the version before; the killed one is completed by the next `register`",
        measured="killed while the model was logged and while it was tried: 1 version, 1 logged model, tried",
    )

    # The same project: an interrupted repetition does not touch the run of the registered version.
    run_id = read_json(project.root / "data/registered/registered.json")["run_id"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        again = start_stage(project, "evaluate")
        kill_when_open(again, project, number)
        assert client_of(project).get_run(run_id).info.status == "FINISHED"


def kill_when_open(process: subprocess.Popen[str], project: Project, number: int) -> None:
    """Send a signal once the stage has opened its run, which it notes in its tags."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        runs = client_of(project).search_runs(["1"], f"tags.`textmill.process` LIKE '%\"pid\": {process.pid}%'")
        if runs:
            break
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -9)


def test_summary_in_the_folder_of_an_earlier_version_names_the_challenger(three_versions: Layout) -> None:
    assert aliases(three_versions) == {"challenger": "3"}
    note = three_versions.registered / "registered.json"
    write_json(note, {"name": NAME, "version": "2", "alias": "challenger", "run_id": "x", "uri": f"models:/{NAME}/2"})
    shown = textmill("summary", cwd=three_versions.root)
    assert shown.returncode == 0, shown.stderr
    assert "version 2, no alias" in shown.stdout
    assert "challenger is version 3" in shown.stdout
    assert f"textmill promote {NAME}/2" in shown.stdout
    document = json.loads(textmill("summary", "--json", cwd=three_versions.root).stdout)["registered"]
    assert document["alias"] is None
    assert document["aliases"] == {"challenger": "3"}
    write_json(note, {"name": NAME, "version": "3", "alias": "challenger", "run_id": "x", "uri": f"models:/{NAME}/3"})
    assert "version 3, alias challenger" in textmill("summary", cwd=three_versions.root).stdout
    store(three_versions).delete_registered_model_alias(NAME, "challenger")
    store(three_versions).delete_model_version(NAME, "3")
    gone = textmill("summary", cwd=three_versions.root)
    assert gone.returncode == 0
    assert "has no version 3" in gone.stdout


def test_challenger_is_not_set_while_a_promotion_holds_the_lock(three_versions: Layout) -> None:
    client = store(three_versions)
    version = RegisteredVersion(NAME, "1", "challenger", "x", f"models:/{NAME}/1")
    setting = threading.Thread(target=make_challenger, args=(client, version))
    with promotion_lock(client, NAME, client.tracking_uri):
        setting.start()
        time.sleep(1.5)
        assert aliases(three_versions) == {"challenger": "3"}
    setting.join(30)
    assert aliases(three_versions) == {"challenger": "1"}
    assert len(list_versions(three_versions)) == 3


LOGGING = """
import sys
from pathlib import Path
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.registry.runs.tracking import stage_run
from textmill.stages.runner import run_program

layout, what = Layout(Path(sys.argv[1])), sys.argv[2]

def program():
    with stage_run("train", layout, RuntimeConfig(), upstream=None, fingerprint="f") as run:
        if what == "fill":
            return
        if what == "artifacts":
            run.log_artifact(layout.root / "large", "notes")
        for step in range(100_000):
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)

run_program("train", program)
"""


@pytest.mark.parametrize("what", ["metrics", "artifacts"])
def test_full_disk_under_the_store_is_one_line_with_path_and_space(tmp_path: Path, what: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "large").write_bytes(b"0" * 5_000_000)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(home)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here (needs root)")
    try:
        environment = {**os.environ, "TEXTMILL_HOME": str(home)}
        command = [sys.executable, "-c", LOGGING, str(tmp_path)]
        subprocess.run([*command, "fill"], env=environment, check=True, capture_output=True)
        done = subprocess.run([*command, what], env=environment, capture_output=True, text=True, timeout=300)
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)
    assert done.returncode == 1
    assert "sqlite3" not in done.stderr.lower()
    assert "INSERT" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert str(home / ("mlflow.db" if what == "metrics" else "mlruns")) in line
    assert "the disk is full" in line
    assert "MB free" in line
    record(
        f"5 Full disk under the tracking store: {what}",
        seen=line.replace(str(tmp_path), "..."),
        kept="what was stored before",
        measured="one line",
    )


def test_resumed_training_logs_no_step_twice(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with pytest.raises(KeyboardInterrupt), stage_run("train", layout, RUNTIME, upstream=None, fingerprint="f") as run:
        for step in range(10):
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
        run.log_metrics({"system/cpu": 1.0}, 0)
        raise KeyboardInterrupt
    with stage_run(
        "train", layout, RUNTIME, upstream=None, fingerprint="f", resume_run_id=run.run_id
    ) as again:  # from a checkpoint of step 5
        for step in range(5, 15):
            again.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
        again.log_metrics({"system/cpu": 2.0}, 0)
        again.log_metrics({"best/f1": 0.5})
    history = store(layout).get_metric_history(again.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(15))
    assert [metric.value for metric in history] == [1.0 / (step + 1) for step in range(15)]
    assert [metric.step for metric in store(layout).get_metric_history(again.run_id, "system/cpu")] == [0, 1]
    assert store(layout).get_run(again.run_id).data.metrics["best/f1"] == 0.5
