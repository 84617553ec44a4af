"""`deploy/slurm/train.sbatch` as Slurm runs it, with the signal before its limit; `scontrol` is a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.project import build_project, inherited_environment

pytestmark = pytest.mark.slow


def test_train_script_signalled_before_the_limit_ends_the_stage_and_is_queued_again(
    tmp_path: Path, repository_root: Path
) -> None:
    project = build_project(tmp_path / "project", repository_root)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    (programs / "scontrol").chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = inherited_environment() | {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(project.root)}
    command = ["bash", str(repository_root / "deploy/slurm/train.sbatch"), "prepare"]
    log = tmp_path / "job.log"
    with log.open("w") as file:
        job = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=file, stderr=file)
    while "Running stage" not in log.read_text():
        assert job.poll() is None, log.read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=120) == 143
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    inside = [each.info["cwd"] for each in psutil.process_iter(["cwd"]) if each.info["cwd"]]
    assert str(project.root) not in inside, "DVC and its stage have ended before the job is queued again"
