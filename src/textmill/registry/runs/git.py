"""Run git; failures are None."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SECONDS = 60


def git_bytes(root: Path, *arguments: str) -> bytes | None:
    """Return the output of a git command in the folder `root`, or None if it fails or there is no git or repository."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def git(root: Path, *arguments: str) -> str | None:
    """Return the output as text; see `git_bytes`."""
    output = git_bytes(root, *arguments)
    return None if output is None else output.decode("utf-8", "replace")
