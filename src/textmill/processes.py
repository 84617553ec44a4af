"""Stop a process together with its child processes."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


def end_family(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Send SIGTERM to a process and all its descendants; send SIGKILL to those alive after `seconds`."""
    import psutil

    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        _send(member, signal.SIGTERM)
    _, alive = psutil.wait_procs([member for member in family if _runs(member)], timeout=seconds)
    for member in alive:
        _send(member, signal.SIGKILL)
    process.wait()


def _send(process: psutil.Process, number: signal.Signals) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _runs(process: psutil.Process) -> bool:
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
