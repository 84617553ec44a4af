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
from support.project import Project, build_project, inherited_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def laid(tmp_path: Path, repository_root: Path) -> Project:
    project = build_project(tmp_path / "project", repository_root)
    project.edit("conf/experiment/tiny.yaml", "max_epochs: 2", "max_epochs: 40\n  checkpoint_seconds: 0.2")
    return project


def test_train_script_signalled_before_the_limit_is_queued_again_and_continues(
    laid: Project, tmp_path: Path, repository_root: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    (programs / "scontrol").chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = inherited_environment() | {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(laid.root)}
    command = ["bash", str(repository_root / "deploy/slurm/train.sbatch"), "train"]
    log = (tmp_path / "job.log").open("w")
    job = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    checkpoints = laid.root / ".dvc/tmp/textmill/checkpoints"
    for _ in range(12_000):
        if list(checkpoints.glob("*/step-*.json")):
            break
        assert job.poll() is None, (tmp_path / "job.log").read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    inside = [each.info["cwd"] for each in psutil.process_iter(["cwd"]) if each.info["cwd"]]
    assert str(laid.root) not in inside, "the stage has ended before the job is queued again"

    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "continuing from" in done.stderr
    assert (laid.root / "data/trained/metrics.json").is_file()
