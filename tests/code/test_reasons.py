"""Files that `textmill why` reads and that others have damaged: one clear line, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from textmill.config.code import Code
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.stages import reasons
from textmill.stages.reasons import Lock, last

WHOLE = "schema: '2.0'\nstages:\n  fetch:\n    cmd: x\n    outs:\n    - path: data/raw\n      md5: a\n"


def test_lock_is_read_or_missing_or_empty(tmp_path: Path) -> None:
    assert Lock(tmp_path).stages == {}
    (tmp_path / "dvc.lock").write_text("")
    assert Lock(tmp_path).stages == {}
    (tmp_path / "dvc.lock").write_text(WHOLE)
    assert Lock(tmp_path).producers == {"data/raw": "fetch"}


@pytest.mark.parametrize(
    "content",
    [
        f"<<<<<<< HEAD\n{WHOLE}",
        WHOLE.replace("    cmd", "<<<<<<< HEAD\n    cmd").encode(),
        "stages: [\n",
        "- 1\n",
        "stages: 3\n",
        "stages:\n  fetch: null\n",
        "stages:\n  fetch:\n    outs:\n    - md5: a\n",
        b"\x00\x01",
    ],
)
def test_damaged_lock_is_named_in_one_line(content: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"dvc\.lock: not a lock file as DVC writes it\. Solve its merge conflict"):
        Lock(tmp_path)


def test_damaged_files_of_this_machine_are_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    facts, reasons = layout.state / "code/facts.json", layout.reasons / "fetch.json"
    for path in (facts, reasons):
        path.parent.mkdir(parents=True)
        path.write_text("{")
    with pytest.raises(UserError, match=r"facts\.json: not a JSON object\. Delete it"):
        Code(layout)
    with pytest.raises(UserError, match=r"fetch\.json: not a JSON object\. Delete it"):
        last("fetch", layout)


def test_constraints_of_another_encoding_are_read(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_bytes("# Prüfung\nnumpy==2.0.0\n".encode("latin-1"))
    assert Code(Layout(tmp_path)).pins(["numpy"]) == {"numpy": "2.0.0"}


def test_why_names_the_dvc_at_work(tmp_path: Path) -> None:
    stage = f'{sys.executable} -c \'import time; open("started", "w"); time.sleep(60); open("out", "w")\''
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"slow": {"cmd": stage, "outs": ["out"]}}}))
    dvc = str(Path(sys.executable).with_name("dvc"))
    subprocess.run([dvc, "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    with subprocess.Popen([dvc, "repro", "--quiet"], cwd=tmp_path, start_new_session=True) as repro:
        try:
            while not (tmp_path / "started").exists():
                assert repro.poll() is None
                time.sleep(0.05)
            with pytest.raises(UserError, match=rf"DVC is at work here \(process {repro.pid}\)"):
                reasons._status(Layout(tmp_path))
        finally:
            os.killpg(repro.pid, signal.SIGKILL)
