"""Programs that the index of Python packages does not have: installed by apt where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def require_package(package: str, present: str) -> None:
    """Install a Debian package unless a file that matches the glob `present` is there; skip where that cannot be.

    The reason of a skip is printed at the end of the tests (`-ra`).
    """
    if _found(present):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"needs {package}, and only root on Debian or Ubuntu can install it from within a test")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        done = subprocess.run(["apt-get", "-qq", *command], capture_output=True, text=True, env=environment)
        if done.returncode:
            pytest.skip(f"needs {package}, and apt-get {command[0]} failed: {done.stderr.strip()[-300:]}")
    assert _found(present), f"{package} has no {present}"


def _found(pattern: str) -> bool:
    return any(Path("/").glob(pattern.removeprefix("/")))
