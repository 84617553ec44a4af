"""SIGKILL of the process that started a training of two ranks with loader processes: none of them lives on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.faults import record
from tiny_training import make_project

PROGRAM = Path(__file__).with_name("tiny_training.py")
# As DVC does it: the variable is in the environment of the stage, not in its own.
STARTER = "import os, subprocess, sys; subprocess.run(sys.argv[1:], env=os.environ | {'DVC_STAGE': 'train'})"
WITHIN_SECONDS = 45


@pytest.mark.slow
@pytest.mark.fault
def test_ranks_and_loaders_end_with_the_starter(tmp_path: Path) -> None:
    trainer = {"devices": 2, "strategy": "ddp"}
    root = make_project(tmp_path / "project", trainer=trainer, max_epochs=5000, checkpoint_seconds=0.05)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    command = [sys.executable, "-c", STARTER, sys.executable, str(PROGRAM), str(root)]
    with (tmp_path / "log").open("w") as log:
        starter = subprocess.Popen(command, env=environment, cwd=root, stderr=log)
    end = time.monotonic() + 300
    while not list(root.glob(".dvc/tmp/textmill/checkpoints/*/*.ckpt")):
        assert time.monotonic() < end, (tmp_path / "log").read_text()
        assert starter.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    members = psutil.Process(starter.pid).children(recursive=True)
    assert len([each for each in members if str(PROGRAM) in each.cmdline()]) >= 2, "two ranks"
    starter.kill()
    starter.wait()
    killed = time.monotonic()
    _, alive = psutil.wait_procs(members, timeout=WITHIN_SECONDS)
    took = time.monotonic() - killed
    for process in alive:
        process.kill()
    assert alive == [], (tmp_path / "log").read_text()
    record(
        "2 SIGKILL of what started a training of two ranks",
        seen="`train: ends, because the process that started it is dead`",
        kept="the last checkpoint",
        measured=f"{len(members)} processes, all ended after {took:.1f} s",
        seconds=took,
    )
