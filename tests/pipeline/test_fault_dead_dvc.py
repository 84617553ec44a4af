"""SIGKILL of `dvc` alone: its stage ends too, and never do two processes write one output."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.faults import record, rounds
from support.project import Project

from textmill import processes
from textmill.errors import UserError
from textmill.processes import only_writer

WITHIN_SECONDS = 20


def start(project: Project, *command: str, **environment: str) -> subprocess.Popen[str]:
    """A command of the project in the background, its output in a file that a dead reader cannot break."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (project.root / "log.txt").open("w") as log:
        return subprocess.Popen(
            command, cwd=project.root, env=os.environ | {"PATH": path} | environment, stdout=log, stderr=log, text=True
        )


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def statuses(project: Project) -> list[str]:
    with sqlite3.connect(project.root / "mlflow.db") as database:
        if not database.execute("SELECT name FROM sqlite_master WHERE name = 'runs'").fetchall():
            return []
        return [row[0] for row in database.execute("SELECT status FROM runs")]


def log(project: Project) -> str:
    return (project.root / "log.txt").read_text()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def train_for_long(project: Project, epochs: int) -> None:
    """Let the training last, with a checkpoint ten times a second."""
    project.edit(
        "conf/experiment/tiny.yaml", "  max_epochs: 2\n", f"  max_epochs: {epochs}\n  checkpoint_seconds: 0.1\n"
    )


def checkpoints(project: Project) -> list[Path]:
    return list(project.root.glob(".dvc/tmp/textmill/checkpoints/*/*.ckpt"))


@pytest.mark.slow
@pytest.mark.fault
def test_killed_dvc_takes_its_training_along_and_the_next_one_goes_on(project: Project) -> None:
    number = rounds(2, 10)
    train_for_long(project, 40 * number)
    took = []
    for attempt in range(number):
        dvc = start(project, "dvc", "repro", "train", SHELL=("/bin/sh", "/bin/bash")[attempt % 2])
        wait_for(lambda: "Running stage 'train'" in log(project))
        if attempt:  # the first time at once, before the stage can look who started it
            wait_for(lambda: checkpoints(project))
            time.sleep(random.uniform(0, 1))
        members = psutil.Process(dvc.pid).children(recursive=True)
        dvc.kill()
        dvc.wait()
        killed = time.monotonic()
        while alive(members):
            assert time.monotonic() < killed + WITHIN_SECONDS, log(project)
            time.sleep(0.02)
        took.append(time.monotonic() - killed)
        assert "Traceback" not in log(project), log(project)
        assert statuses(project) == ["KILLED"] * bool(attempt)
    assert project.repro("train") == ["train"]
    assert statuses(project) == ["FINISHED"], "one run, that went on"
    record(
        "2 SIGKILL of dvc alone",
        seen="`train: ends, because the process that started it is dead`; the next `dvc repro` continues",
        kept="the last checkpoint; the run is KILLED and continues later",
        measured=f"{number} kills: the stage had ended after at most {max(took):.1f} s",
        seconds=took,
    )


@pytest.mark.slow
@pytest.mark.fault
def test_next_repro_beside_a_dying_stage_waits_for_it(project: Project) -> None:
    """The orphan is suspended for three seconds, so that the second `dvc repro` surely finds it."""
    train_for_long(project, 40)
    dvc = start(project, "dvc", "repro", "train")
    wait_for(lambda: checkpoints(project))
    (orphan,) = [each for each in psutil.Process(dvc.pid).children(recursive=True) if "python" in each.name()]
    orphan.suspend()
    dvc.kill()
    dvc.wait()
    second = start(project, "dvc", "repro", "train")
    try:
        wait_for(lambda: f"waiting for process {orphan.pid}" in log(project))
        time.sleep(3)
        assert not (project.root / "data/trained").exists()
    finally:
        orphan.resume()
    assert second.wait(300) == 0, log(project)
    assert statuses(project) == ["FINISHED"]


@pytest.mark.slow
def test_stage_by_hand_outlives_its_shell(project: Project) -> None:
    command = f"{sys.executable} -m textmill.stages.train train.max_epochs=20 train.checkpoint_seconds=0.1"
    shell = start(project, "/bin/sh", "-c", f"{command}; true")
    wait_for(lambda: checkpoints(project))
    shell.kill()
    shell.wait()
    wait_for(lambda: "train: done in" in log(project))
    assert statuses(project) == ["FINISHED"]


def test_second_writer_is_refused_with_the_pid_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_WAIT_SECONDS", 0.5)
    program = (
        "import pathlib, sys, time\n"
        "from textmill.processes import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1]), 'data/trained'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    lock = tmp_path / "folder" / "train.lock"
    first = subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    refused = pytest.raises(
        UserError, match=rf"process {first.pid} is writing data/trained. Wait for it, .*kill {first.pid}"
    )
    with refused, only_writer(lock, "data/trained"):
        pytest.fail("two writers")
    first.send_signal(signal.SIGKILL)
    first.wait()
    with only_writer(lock, "data/trained"):
        assert (tmp_path / "folder" / "train.pid").read_text() == str(os.getpid())
