"""Fault 7: a tracking server that is down, goes, hangs, or loses its answers, before a real MLflow server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.faults import record, rounds
from support.proxy import Proxy, proxy
from support.tiny_export import mlflow_server

from textmill.config.layout import Layout

pytestmark = [pytest.mark.fault, pytest.mark.slow]

# What a stage logs, in a process of its own: `seconds` of steps of 10 ms, the slowest of which is printed.
PROGRAM = """
import json, sys, time
from pathlib import Path
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.registry.runs.tracking import stage_run
from textmill.stages.runner import run_program

root, stage, uri, seconds, needs = sys.argv[1:]
layout = Layout(Path(root))
before = {"train": None, "evaluate": "trained", "register": "evaluation"}[stage]
own = {"train": layout.trained, "evaluate": layout.evaluation, "register": layout.registered}[stage]

def program():
    runtime = RuntimeConfig(tracking_experiment="tiny", tracking_uri=uri)
    with stage_run(stage, layout, runtime, upstream=layout.root / "data" / before / "run.json" if before else None,
                   fingerprint=stage, system_metrics=stage == "train", needs_store=needs == "yes") as run:
        run.log_params({stage: {"rate": 0.5}})
        print("open", flush=True)
        slowest, step, end = 0.0, 0, time.monotonic() + float(seconds)
        while time.monotonic() < end:
            time.sleep(0.01)
            began = time.perf_counter()
            run.log_metrics({f"{stage}/loss": 1 / (step + 1), f"{stage}/rate": float("nan")}, step)
            slowest = max(slowest, time.perf_counter() - began)
            step += 1
        stepped = time.time()
        note = layout.root / f"{stage}.txt"
        note.write_text(stage * 1000)
        run.log_artifact(note, "notes")
        run.set_tags({f"tag.{stage}": "set"})
        run.write_reference(own / "run.json")
        print(json.dumps({"steps": step, "slowest": slowest, "run_id": run.run_id, "stepped": stepped}), flush=True)

run_program(stage, program)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server") / "mlflow") as address:
        yield address


@pytest.fixture
def line(server: str) -> Iterator[Proxy]:
    with proxy(server) as made:
        yield made


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return made_layout(tmp_path)


def made_layout(root: Path) -> Layout:
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "data").mkdir()
    return Layout(root)


def start(
    layout: Layout, stage: str, address: str, seconds: float = 0.1, needs: str = "no", **environment: str
) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(layout.root), stage, address, str(seconds), needs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, **environment},
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return {**json.loads(output.splitlines()[-1]), "errors": errors}


def finish_timed(process: subprocess.Popen[str]) -> tuple[dict[str, Any], float]:
    """Finish a stage; return what it printed, and the seconds from its last step to its end."""
    done = finish(process)
    return done, time.time() - done["stepped"]


def sync(layout: Layout, address: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "textmill"), "sync", "--json"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": address}
    return subprocess.run(command, cwd=layout.root, capture_output=True, text=True, timeout=120, env=environment)


def doctor(layout: Layout, address: str, *options: str) -> dict[str, list[dict[str, Any]]]:
    command = [str(Path(sys.executable).parent / "textmill"), "doctor", "--json", *options]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": address}
    done = subprocess.run(command, cwd=layout.root, capture_output=True, text=True, timeout=120, env=environment)
    return {subject["subject"]: subject["findings"] for subject in json.loads(done.stdout)["subjects"]}


def client(server: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(server)


def only_run(server: str, known: set[str]) -> Any:
    """The one run that is new, and all whose ids are `known` from before."""
    store = client(server)
    experiment = store.get_experiment_by_name("tiny")
    runs = store.search_runs([experiment.experiment_id]) if experiment else []
    new = [run for run in runs if run.info.run_id not in known]
    assert len(new) == 1, new
    return new[0]


def known_runs(server: str) -> set[str]:
    experiment = client(server).get_experiment_by_name("tiny")
    return {run.info.run_id for run in client(server).search_runs([experiment.experiment_id])} if experiment else set()


def assert_whole(server: str, run: Any, stage: str, steps: int) -> None:
    """Every step stands there once."""
    history = client(server).get_metric_history(run.info.run_id, f"{stage}/loss")
    assert [metric.step for metric in history] == list(range(steps))
    assert [metric.value for metric in history] == [1 / (step + 1) for step in range(steps)]
    assert len(client(server).get_metric_history(run.info.run_id, f"{stage}/rate")) == steps
    assert run.data.params[f"{stage}.rate"] == "0.5"
    assert run.data.tags[f"tag.{stage}"] == "set"
    notes = {file.path: file.file_size for file in client(server).list_artifacts(run.info.run_id, "notes")}
    assert notes[f"notes/{stage}.txt"] == 1000 * len(stage)


def test_train_server_down_at_start_refuses_in_one_line(layout: Layout, line: Proxy) -> None:
    line.set("refuse")
    process = start(layout, "train", line.address)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert "does not answer" in lines[0]
    assert "TEXTMILL_OFFLINE=1" in lines[0]
    assert not list(layout.spool.glob("*"))
    record(
        "7 Tracking server down at start",
        seen=lines[0].replace(line.address, "ADDRESS"),
        kept="nothing was started",
        measured="one line, exit status 1",
    )


@pytest.mark.parametrize("fault", ["refuse", "hang", "lose answers"])
def test_server_that_fails_midway_training_never_waits_and_sync_adds_no_duplicate(
    layout: Layout, server: str, line: Proxy, fault: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    known = known_runs(server)
    process = start(layout, "train", line.address, seconds=4)
    # The same training with a healthy server, at the same time: what a busy machine costs, both pay.
    undisturbed = start(made_layout(tmp_path_factory.mktemp("undisturbed")), "train", server, seconds=4)
    for each in (process, undisturbed):
        assert each.stdout is not None
        assert each.stdout.readline() == "open\n"
    time.sleep(1.5)
    line.set(fault)
    with ThreadPoolExecutor(2) as threads:
        (done, ended), (other, usual) = threads.map(finish_timed, (process, undisturbed))
    known.add(other["run_id"])
    assert done["slowest"] < 0.5
    warning = [text for text in done["errors"].splitlines() if "textmill sync" in text]
    assert len(warning) == 1, done["errors"]
    assert ended < usual + 5
    assert len(list(layout.spool.glob("[0-9]*"))) == 1
    line.set("refuse")
    assert sync(layout, line.address).returncode == 1
    line.set("pass")
    sent = sync(layout, line.address)
    assert sent.returncode == 0, sent
    assert [stage["outcome"] for stage in json.loads(sent.stdout)["stages"]] == ["sent"]
    assert json.loads(sync(layout, line.address).stdout) == {"stages": []}
    run = only_run(server, known)
    assert run.info.run_id == done["run_id"]
    assert run.info.status == "FINISHED"
    assert_whole(server, run, "train", done["steps"])
    record(
        f"7 Tracking server mid-training: {fault}",
        seen=warning[0].partition(": ")[2],
        kept="every metric, parameter, tag and artifact, once",
        measured=f"slowest of {done['steps']} logged steps {1000 * done['slowest']:.0f} ms, {ended:.1f} s to end",
        slowest=done["slowest"],
    )


def test_server_gone_for_a_while_is_caught_up_by_the_stage_itself(layout: Layout, server: str, line: Proxy) -> None:
    known = known_runs(server)
    away = rounds(3, 60)
    process = start(layout, "train", line.address, seconds=away + 8)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    time.sleep(1)
    line.set("refuse")
    time.sleep(away)
    line.set("pass")
    done = finish(process)
    assert "answers again" in done["errors"]
    assert not list(layout.spool.glob("[0-9]*"))
    run = only_run(server, known)
    assert run.info.status == "FINISHED"
    assert_whole(server, run, "train", done["steps"])
    assert any(name.startswith("system/cpu") for name in run.data.metrics)
    record(
        "7 Tracking server gone for a while",
        seen="one line when it goes, one when it is back",
        kept="everything, once",
        measured=f"away for {away} s; {done['steps']} steps, none missing, none twice",
    )


def test_server_gone_for_good_later_stages_go_on_and_register_refuses(layout: Layout, server: str, line: Proxy) -> None:
    known = known_runs(server)
    train = start(layout, "train", line.address, seconds=1)
    assert train.stdout is not None
    train.stdout.readline()
    line.set("refuse")
    trained = finish(train)
    evaluated = finish(start(layout, "evaluate", line.address))
    assert len(list(layout.spool.glob("[0-9]*"))) == 2
    process = start(layout, "register", line.address, needs="yes")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(errors.strip().splitlines()) == 1
    assert "textmill sync" in errors
    line.set("pass")
    done = finish(start(layout, "register", line.address, needs="yes"))  # the next stage sends what waits
    run = only_run(server, known)
    assert trained["run_id"] == run.info.run_id == done["run_id"]
    assert run.info.status == "FINISHED"
    assert_whole(server, run, "train", trained["steps"])
    assert_whole(server, run, "evaluate", evaluated["steps"])
    assert not list(layout.spool.glob("[0-9]*"))


def test_offline_run_is_created_by_sync_and_continued(layout: Layout, server: str, line: Proxy) -> None:
    known = known_runs(server)
    offline = {"TEXTMILL_OFFLINE": "1"}
    line.set("hang")
    began = time.monotonic()
    trained = finish(start(layout, "train", line.address, **offline))
    evaluated = finish(start(layout, "evaluate", line.address, **offline))
    assert time.monotonic() - began < 60
    assert trained["run_id"] not in known
    process = start(layout, "register", line.address, needs="yes", **offline)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, len(errors.strip().splitlines())) == (1, 1)
    assert "TEXTMILL_OFFLINE" in errors
    line.set("lose answers")  # the run is created, and its id gets lost on the way
    assert sync(layout, line.address).returncode == 1
    line.set("pass")
    assert sync(layout, line.address).returncode == 0
    run = only_run(server, known)
    assert run.info.status == "FINISHED"
    assert run.data.tags["textmill.stage.train"] == "train"
    assert_whole(server, run, "train", trained["steps"])
    assert_whole(server, run, "evaluate", evaluated["steps"])
    done = finish(start(layout, "register", line.address, needs="yes"))
    assert done["run_id"] == run.info.run_id
    assert only_run(server, known).info.run_id == run.info.run_id


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_the_server_hangs_ends_the_stage_within_five_seconds(
    layout: Layout, server: str, line: Proxy, number: signal.Signals
) -> None:
    known = known_runs(server)
    program = "import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + PROGRAM
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(layout.root), "train", line.address, "60", "no"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.5)
    line.set("hang")
    time.sleep(1.5)
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    took = time.monotonic() - began
    assert process.returncode == 128 + number
    assert took < 5
    assert "textmill sync" in errors
    assert "Traceback" not in errors
    line.set("pass")
    assert sync(layout, line.address).returncode == 0
    assert only_run(server, known).info.status == "KILLED"
    record(
        f"3 {number.name} while the tracking server hangs",
        seen="one line with the folder that waits for `textmill sync`",
        kept="all metrics; the run is KILLED after the sync",
        measured=f"ended in {took:.1f} s with status {128 + number}",
        seconds=took,
    )


def test_sigkill_with_the_server_gone_keeps_the_metrics_for_the_next_stage(
    layout: Layout, server: str, line: Proxy
) -> None:
    known = known_runs(server)
    process = start(layout, "train", line.address, seconds=60)
    assert process.stdout is not None
    process.stdout.readline()
    line.set("refuse")
    time.sleep(4)
    process.kill()
    process.communicate()
    (spool,) = layout.spool.glob("[0-9]*")
    found = doctor(layout, line.address)
    assert str(spool) in found["runs"][0]["what"]
    assert line.address in found["store"][0]["what"]
    line.set("pass")
    # The metrics that wait, and the run if the server knew it as RUNNING
    assert {one["outcome"] for one in doctor(layout, line.address, "--fix")["runs"]} == {"repaired"}
    assert doctor(layout, line.address)["runs"] == []
    run = only_run(server, known)
    assert run.info.status == "KILLED"
    steps = [metric.step for metric in client(server).get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(len(steps)))
    assert len(steps) > 100  # all but the last second


def test_sync_while_the_stage_still_writes_leaves_it_alone(layout: Layout, line: Proxy) -> None:
    process = start(layout, "train", line.address, seconds=8)
    assert process.stdout is not None
    process.stdout.readline()
    outcome = sync(layout, line.address)
    assert [stage["outcome"] for stage in json.loads(outcome.stdout)["stages"]] == ["in use"]
    assert outcome.returncode == 0
    finish(process)
