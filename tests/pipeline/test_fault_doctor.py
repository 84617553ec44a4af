"""Fault 12: what `textmill doctor` finds, repairs, and finds no more; every fault is planted for real."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.faults import record
from support.project import Project

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def doctor(project: Project, *options: str, **environment: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Its exit status, and the findings by subject."""
    done = project.run("textmill", "doctor", "--json", *options, check=False, env=environment)
    assert "Traceback" not in done.stderr, done.stderr
    document = json.loads(done.stdout)
    found = {subject["subject"]: subject["findings"] for subject in document["subjects"]}
    left = [one for findings in found.values() for one in findings if one["outcome"] != "repaired"]
    assert document["wrong"] == len(left)
    assert done.returncode == int(bool(left))
    assert all(one["remedy"] for findings in found.values() for one in findings)
    return done.returncode, found


def objects(project: Project, path: str) -> list[Path]:
    """The objects of an output in DVC's cache."""
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())
    (digest,) = [
        out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", []) if out["path"] == path
    ]
    cache = project.root / ".dvc/cache/files/md5"
    listing = json.loads((cache / digest[:2] / digest[2:]).read_text())
    return [cache / entry["md5"][:2] / entry["md5"][2:] for entry in listing]


RUNNING = """
import os, signal
from textmill.config.layout import find_layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.registry.runs.tracking import stage_run
with stage_run("train", find_layout(), RuntimeConfig(), upstream=None, fingerprint="killed"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_doctor_finds_and_repairs_what_killed_processes_and_hands_left(project: Project) -> None:
    root = project.root
    project.run("python", "-m", "textmill.stages.register")
    assert doctor(project)[0] == 0, doctor(project)
    before = project.run("dvc", "status", "--json").stdout

    shutil.rmtree(root / "data/evaluation")
    damaged, missing = objects(project, "data/trained")[0], objects(project, "data/exported")[0]
    damaged.chmod(0o644)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    missing.unlink()
    (root / "data/.trained.partial-abc").mkdir()
    (root / "data/.trained.partial-abc/half").write_bytes(b"0" * 1000)
    useless = root / ".dvc/tmp/textmill/checkpoints/0123"
    useless.mkdir(parents=True)
    (useless / "parts.json").write_text("{}")
    os.utime(useless, (time.time() - 100,) * 2)
    project.run("python", "-c", RUNNING, check=False)
    future = root / "conf/config.yaml"
    os.utime(future, (time.time() + 9999,) * 2)
    import mlflow

    client = mlflow.MlflowClient(*[f"sqlite:///{root / 'mlflow.db'}"] * 2)
    run_id = json.loads((root / "data/registered/registered.json").read_text())["run_id"]
    client.delete_run(run_id)

    status, found = doctor(project)
    assert status == 1
    words = {subject: " ".join(one["what"] for one in findings) for subject, findings in found.items()}
    assert "data/evaluation" in words["outputs"]
    assert "was changed in the cache" in words["cache"]
    assert "is not in the cache" in words["cache"]
    assert "partial outputs" in words["leftovers"]
    assert "0123" in " ".join(one["remedy"] for one in found["leftovers"])
    assert "is RUNNING, and its process is dead" in words["runs"]
    assert "future" in words["clock"]
    assert run_id in words["registry"]
    number = sum(map(len, found.values()))
    assert number == 8

    status, fixed = doctor(project, "--fix")
    assert status == 0, fixed
    began = time.monotonic()
    status, left = doctor(project)
    assert (status, sum(map(len, left.values()))) == (0, 0), left
    took = time.monotonic() - began
    assert (root / "data/evaluation/metrics.json").is_file()
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    assert not list(client.search_runs(["0", "1"], "attributes.status = 'RUNNING'"))
    assert project.run("dvc", "status", "--json").stdout == before
    record(
        "12 `textmill doctor` after kills and deleted files",
        seen="each problem with its remedy",
        kept="everything that a process uses or a version needs",
        measured=f"{number} planted, {number} found, {number} repaired by `--fix`, none left; {took:.1f} s",
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def server_whose_clock_is_wrong() -> Iterator[str]:
    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(404)
            self.send_header("Date", format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Late)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_doctor_names_what_only_the_user_can_repair(project: Project, small_disk: Path) -> None:
    root = project.root
    pins, resolved, lock = root / "constraints.txt", root / "data/resolved.yaml", root / "dvc.lock"
    before = {path: path.read_text() for path in (pins, resolved, lock)}
    pins.write_text(re.sub(r"(?m)^numpy==.*$", "numpy==0.1", before[pins]))
    assert "accelerator: auto" in before[resolved]
    # Without its digest, as earlier versions wrote it
    other = re.sub(r"(?m)^# SHA-256.*\n", "", before[resolved]).replace("accelerator: auto", "accelerator: gpu")
    resolved.write_text(other)
    with server_whose_clock_is_wrong() as address:
        status, found = doctor(project, "--fix", TMPDIR=str(small_disk), MLFLOW_TRACKING_URI=address)
    assert status == 1
    words = {subject: " ".join(one["what"] for one in findings) for subject, findings in found.items()}
    assert "pinned is 0.1" in words["environment"]
    assert str(small_disk) in words["disk"]
    assert "there is no GPU" in words["GPU"]
    assert f"the tracking server {address} is -" in words["clock"]
    assert address in words["store"]

    for path, text in before.items():
        path.write_text(text)
    lock.write_text("<<<<<<< HEAD\n" + before[lock])
    (root / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"\1" * 9000)
    status, found = doctor(project)
    assert status == 1
    assert "dvc.lock cannot be read" in found["outputs"][0]["what"]
    assert "is damaged" in found["store"][0]["what"]
    lock.write_text(before[lock])
    (root / "mlflow.db").unlink()
    status, found = doctor(project)
    assert status == 0, found


def test_doctor_leaves_what_a_running_stage_uses(project: Project) -> None:
    partial = project.root / "data/.trained.partial-abc"
    partial.mkdir()
    command = [sys.executable, "-c", "import time; time.sleep(60)", "textmill.stages.train"]
    stage = subprocess.Popen(command, cwd=project.root)
    try:
        _, found = doctor(project, "--fix")
        assert found["leftovers"] == []
        assert partial.is_dir()
    finally:
        stage.kill()
        stage.wait()
