"""The skips that are expected: `make test` fails on any other, since a test that does not run proves nothing.

A skip is expected if the name of its test and its reason match, and its condition holds on this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from support.slurm import lacks_slurm

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Expected:
    """A skip that is expected where `when` holds.

    Attributes:
        test: Pattern in the id of the test, such as `pipeline/test_faults.py`.
        reason: Pattern in the reason that the test gives.
        when: Whether this machine lacks what the test needs.
    """

    test: str
    reason: str
    when: Callable[[], bool]


def cannot_mount() -> bool:
    """Whether this process lacks the right to mount (CAP_SYS_ADMIN, bit 21)."""
    return not _capability(21)


def cannot_make_immutable() -> bool:
    """Whether this process lacks the right of `chattr +i` (CAP_LINUX_IMMUTABLE, bit 9), or the file system has none."""
    if os.geteuid() or not _capability(9):
        return True
    probe = ROOT / ".probe-immutable"
    probe.touch()
    try:
        return bool(subprocess.run(["chattr", "+i", probe], capture_output=True).returncode)
    finally:
        subprocess.run(["chattr", "-i", probe], capture_output=True)
        probe.unlink()


def has_no_user_namespaces() -> bool:
    """Whether this process cannot make a user namespace."""
    return not shutil.which("unshare") or bool(subprocess.run(["unshare", "--user", "true"]).returncode)


def is_shallow() -> bool:
    """Whether this clone, or the tests' copy of one, has not got the whole history."""
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    return done.stdout.strip() != "false"


def has_no_packages() -> bool:
    """Whether system packages cannot be installed: not root, no apt-get, or no package index."""
    if os.geteuid() or not shutil.which("apt-get"):
        return True
    done = subprocess.run(["apt-get", "update", "-o", "Acquire::Retries=0"], capture_output=True, text=True)
    return bool(done.returncode) or "Failed to fetch" in done.stdout + done.stderr


def has_no_gpu() -> bool:
    """Whether PyTorch finds no GPU."""
    import torch

    return not torch.cuda.is_available()


def has_no_shared_folder() -> bool:
    """Whether the folder of public data sets is not beside this checkout."""
    return not (ROOT.parent / "shared").is_dir()


EXPECTED = [
    Expected("model/test_label_issues.py::test_flipped", r"needs \.\./shared", has_no_shared_folder),
    Expected("pipeline/test_init.py", r"no \.\./shared", has_no_shared_folder),
    Expected("data/test_chat_templates.py", "trl, the oracle, is missing", lambda: find_spec("trl") is None),
    Expected("pipeline/test_page.py", "axe, the oracle", lambda: find_spec("axe_playwright_python") is None),
    Expected("model/test_preference_tuning.py", "trl, the oracle, is missing", lambda: find_spec("trl") is None),
    Expected("data/test_prepare.py::test_sst2", r"no \.\./shared", has_no_shared_folder),
    Expected("pipeline/test_earlier_versions.py", "is not in this clone", is_shallow),
    Expected("pipeline/test_fault", "cannot mount a tmpfs", cannot_mount),
    Expected("pipeline/test_fault", "cannot make a folder unwritable", cannot_make_immutable),
    Expected("pipeline/test_fault_places.py", "no user namespaces", has_no_user_namespaces),
    Expected("", "needs .*(only root on Debian|apt-get)", has_no_packages),
    Expected("", r"\b(GPU|CUDA)\b", has_no_gpu),
    Expected("model/test_launch.py", "network namespaces", cannot_mount),  # the same right makes them
    Expected("model/test_launch.py", "no Slurm", lacks_slurm),
    Expected("model/test_allocation.py", "glibc only", lambda: not sys.platform.startswith("linux")),
    Expected("model/test_instruction_tuning.py", "Linux only", lambda: not sys.platform.startswith("linux")),
    Expected("model/test_checkpoint_folder.py", "Linux only", lambda: not sys.platform.startswith("linux")),
    Expected(
        "model/test_parity_with_transformers.py", "the Switch router of transformers .* gives no logits", lambda: True
    ),
]


def unexpected(skips: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of `skips`, pairs of test and reason, that are not expected on this machine."""
    holds: dict[Callable[[], bool], bool] = {}
    found = []
    for test, reason in skips:
        for expected in EXPECTED:
            if expected.test in test and re.search(expected.reason, reason):
                if expected.when not in holds:
                    holds[expected.when] = expected.when()
                if holds[expected.when]:
                    break
        else:
            found.append((test, reason))
    return found


def _capability(bit: int) -> bool:
    status = Path("/proc/self/status")
    if not status.is_file():
        return os.geteuid() == 0
    effective = re.search(r"^CapEff:\s*(\w+)", status.read_text(), re.MULTILINE)
    return bool(effective and int(effective[1], 16) >> bit & 1)
