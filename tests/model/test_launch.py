"""Trainings of two processes by each launcher: one stage, one MLflow run, and killed ranks that go on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.slurm import lacks_slurm, slurm
from test_resume import checkpoint_folder, history, runs
from tiny_training import make_project, runtime_config

from textmill.config.layout import Layout
from textmill.errors import UserError

PROGRAM = Path(__file__).with_name("tiny_training.py")
LONG: dict[str, Any] = {"max_epochs": 12, "checkpoint_seconds": 1e-6}
WITHIN_SECONDS = 30


def start(root: Path, *prefix: str, **environment: str) -> subprocess.Popen[str]:
    settings = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""} | environment
    command = [*prefix, sys.executable, str(PROGRAM), str(root)]
    log = (root / f"log{environment.get('NODE_RANK', '')}").open("w")
    return subprocess.Popen(command, env=settings, cwd=root, stderr=log, stdout=log, text=True)


def log_of(root: Path) -> str:
    return (root / "log").read_text()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], root: Path) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, log_of(root)
        assert time.monotonic() < end, log_of(root)
        time.sleep(0.05)


def has_checkpoint(root: Path) -> bool:
    return any(root.glob(".dvc/tmp/textmill/checkpoints/*/step-*.json"))


def ranks_of(process: subprocess.Popen[str], name: str = "tiny_training") -> list[psutil.Process]:
    """Return the processes below one, of the first rank on."""
    found = {}
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            environment, command = each.environ(), " ".join(each.cmdline())
        except psutil.Error:
            continue
        if "TEXTMILL_LAUNCHED" in environment and "RANK" in environment and name in command:
            found[int(environment["RANK"])] = each
    return [found[rank] for rank in sorted(found)]


def check_finished(root: Path, epochs: int) -> None:
    assert list(runs(root).values()) == ["FINISHED"]
    assert (root / "data/trained/model/model.safetensors").is_file()
    assert float(history(root)[-1]["epoch"]) == epochs
    assert not list((root / ".dvc/tmp/textmill/checkpoints").iterdir())


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test starts, which end with it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.slow
def test_torchrun_with_a_killed_rank_goes_on_in_the_same_run(
    tmp_path: Path, ended: list[subprocess.Popen[str]]
) -> None:
    launcher = {"name": "torchrun", "processes": 2}
    root = make_project(tmp_path / "project", {"strategy": "fsdp"}, launcher, **LONG)
    process = start(root)
    ended.append(process)
    wait_for(lambda: has_checkpoint(root) and len(ranks_of(process)) == 2, process, root)
    (run,) = runs(root)
    ranks_of(process)[0].kill()
    assert process.wait(timeout=200) == 0, log_of(root)
    assert list(runs(root)) == [run]
    check_finished(root, LONG["max_epochs"])
    log = log_of(root)
    assert log.count("continuing from") == 1, "one rank reports it"
    assert "Traceback" not in log


@pytest.mark.slow
def test_torchrun_at_a_signal_ends_its_ranks(tmp_path: Path, ended: list[subprocess.Popen[str]]) -> None:
    launcher = {"name": "torchrun", "processes": 2}
    root = make_project(tmp_path / "project", {"strategy": "fsdp"}, launcher, **LONG | {"max_epochs": 5000})
    process = start(root)
    ended.append(process)
    wait_for(lambda: has_checkpoint(root), process, root)
    ranks = ranks_of(process)
    process.terminate()
    assert process.wait(timeout=WITHIN_SECONDS) == 143, log_of(root)
    assert psutil.wait_procs(ranks, timeout=1)[1] == []
    assert list(runs(root).values()) == ["KILLED"]
    assert checkpoint_folder(root)
    assert "Traceback" not in log_of(root)


@pytest.mark.slow
def test_torchrun_with_a_wrong_setting_ends_in_one_line(tmp_path: Path, ended: list[subprocess.Popen[str]]) -> None:
    launcher = {"name": "torchrun", "processes": 2}
    root = make_project(tmp_path / "project", {"strategy": "fsdp"}, launcher, precision="16-mixed")
    process = start(root)
    ended.append(process)
    assert process.wait(timeout=120) == 1
    lines = [line for line in log_of(root).splitlines() if "float16" in line]
    expected = "textmill train: error: trainer.precision: float16 does not work with sharded weights."
    assert len(lines) == 1, log_of(root)
    assert lines[0].startswith(expected)
    assert "Traceback" not in log_of(root)


@pytest.mark.slow
def test_local_with_a_killed_rank_ends_in_one_line_and_goes_on(
    tmp_path: Path, ended: list[subprocess.Popen[str]]
) -> None:
    root = make_project(tmp_path / "project", {"strategy": "fsdp", "devices": 2}, **LONG)
    process = start(root)
    ended.append(process)
    wait_for(lambda: has_checkpoint(root), process, root)
    (run,) = runs(root)
    (other,) = [each for each in psutil.Process(process.pid).children() if str(PROGRAM) in each.cmdline()]
    other.kill()
    assert process.wait(timeout=WITHIN_SECONDS) == 1, log_of(root)
    log = log_of(root)
    assert log.count("textmill train: error: another process of the training ended") == 1, log
    assert "Traceback" not in log
    process = start(root)
    ended.append(process)
    assert process.wait(timeout=200) == 0, log_of(root)
    assert list(runs(root)) == [run]
    check_finished(root, LONG["max_epochs"])


@pytest.mark.slow
def test_slurm_job_on_this_machine_runs_an_agent_for_each_task(
    tmp_path: Path, ended: list[subprocess.Popen[str]]
) -> None:
    """Submitit's own executor for one machine runs the job's tasks; each is as a machine of its own."""
    launcher = {"name": "slurm", "cluster": "local", "nodes": 2, "processes": 1, "options": {"timeout_min": 5}}
    root = make_project(tmp_path / "project", {"strategy": "ddp"}, launcher)
    process = start(root)
    ended.append(process)
    assert process.wait(timeout=200) == 0, log_of(root)
    check_finished(root, 2)
    assert "starts 1 processes on each of 2 machines" in log_of(root)


@pytest.mark.slow
@pytest.mark.skipif(lacks_slurm(), reason="no Slurm that root may start")
def test_slurm_job_trains_and_a_cancelled_one_is_told(tmp_path: Path, ended: list[subprocess.Popen[str]]) -> None:
    launcher = {"name": "slurm", "processes": 2, "options": {"timeout_min": 5}}
    root = make_project(tmp_path / "project", {"strategy": "fsdp"}, launcher, **LONG)
    with slurm(tmp_path / "slurm") as configuration:
        place = {"SLURM_CONF": str(configuration)}
        process = start(root, **place)
        ended.append(process)
        wait_for(lambda: has_checkpoint(root), process, root)
        (run,) = runs(root)
        subprocess.run(["scancel", "--name=textmill-train"], env=os.environ | place, check=True)
        assert process.wait(timeout=90) == 1, log_of(root)
        assert "ended without a result" in log_of(root)
        process = start(root, **place)
        ended.append(process)
        assert process.wait(timeout=200) == 0, log_of(root)
    assert list(runs(root)) == [run]
    check_finished(root, LONG["max_epochs"])


@pytest.mark.slow
def test_ray_with_two_workers_trains_in_one_run(tmp_path: Path, ended: list[subprocess.Popen[str]]) -> None:
    launcher = {"name": "ray", "processes": 2, "options": {"num_cpus": 3}}
    root = make_project(tmp_path / "project", {"strategy": "fsdp"}, launcher, checkpoint_seconds=1e-6)
    process = start(root)
    ended.append(process)
    assert process.wait(timeout=400) == 0, log_of(root)
    check_finished(root, 2)
    assert "starts 2 workers of Ray" in log_of(root)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip")
    names = [f"textmill-{os.getpid()}-{number}" for number in range(2)]
    cables = [f"tm{os.getpid()}{letter}" for letter in "ab"]
    commands = [["ip", "netns", "add", name] for name in names]
    commands.append(["ip", "link", "add", cables[0], "type", "veth", "peer", "name", cables[1]])
    for number, (name, cable) in enumerate(zip(names, cables, strict=True)):
        inside = ["ip", "-n", name]
        commands += [
            ["ip", "link", "set", cable, "netns", name],
            [*inside, "addr", "add", f"10.77.0.{number + 1}/24", "dev", cable],
            [*inside, "link", "set", cable, "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
    try:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"network namespaces are not permitted: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.mark.slow
def test_torchrun_on_two_hosts_goes_on_after_a_killed_rank(
    tmp_path: Path, two_hosts: list[str], ended: list[subprocess.Popen[str]]
) -> None:
    launcher = {"name": "torchrun", "nodes": 2, "processes": 1, "rendezvous": "10.77.0.1:29511"}
    root = make_project(tmp_path / "project", {"strategy": "fsdp"}, launcher, **LONG)
    hosts = [start(root, "ip", "netns", "exec", name, NODE_RANK=str(number)) for number, name in enumerate(two_hosts)]
    ended.extend(hosts)
    (root / "log").symlink_to("log0")
    wait_for(lambda: has_checkpoint(root), hosts[0], root)
    (run,) = runs(root)
    (rank,) = ranks_of(hosts[1])
    rank.kill()
    logs = [host.wait(timeout=250) for host in hosts], log_of(root), (root / "log1").read_text()
    assert logs[0] == [0, 0], logs
    assert list(runs(root)) == [run]
    check_finished(root, LONG["max_epochs"])


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_launcher_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    from textmill.stages.launch import launch

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed.*\[cluster\]"):
        launch(lambda *_: None, None, runtime_config({"name": name}), Layout(tmp_path))  # type: ignore[arg-type]


def test_torchrun_on_several_machines_without_a_meeting_place_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textmill.stages.launch import launch

    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"runtime\.launcher\.rendezvous: several machines need a place to meet"):
        launch(lambda *_: None, None, runtime_config({"name": "torchrun", "nodes": 2}), Layout(tmp_path))  # type: ignore[arg-type]
