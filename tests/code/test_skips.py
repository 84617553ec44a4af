"""A skip that nobody expects fails the suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import skips
from support.skips import Expected, unexpected

SUITE = "import pytest\n\ndef test_one() -> None:\n    pytest.skip('REASON')\n\ndef test_two() -> None:\n    pass\n"


def run(folder: Path, repository_root: Path, reason: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A suite of its own with this suite's conftest."""
    (folder / "conftest.py").write_text((repository_root / "tests/conftest.py").read_text())
    (folder / "test_it.py").write_text(SUITE.replace("REASON", reason))
    environment = os.environ | {"PYTHONPATH": str(repository_root / "tests")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, *options, folder]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_skip_that_is_not_listed_fails_a_strict_session(tmp_path: Path, repository_root: Path) -> None:
    lenient = run(tmp_path, repository_root, "because")
    strict = run(tmp_path, repository_root, "because", "--strict-skips", "-n", "1")
    assert (lenient.returncode, strict.returncode) == (0, 1), strict.stdout
    assert "NOT EXPECTED test_it.py::test_one: Skipped: because" in strict.stdout
    assert "1 skipped, 1 of them not expected" in strict.stdout


def test_listed_skip_is_expected_only_where_its_condition_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    skip = [("tests/model/test_it.py::test_one", "Skipped: needs a GPU")]
    for lacking in (True, False):
        monkeypatch.setattr(skips, "EXPECTED", [Expected("test_it.py", "GPU", lambda lacking=lacking: lacking)])
        assert bool(unexpected(skip)) is not lacking
