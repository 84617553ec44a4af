"""Stop a process with its children, end one whose starter died, and let only one process write an output."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError

if TYPE_CHECKING:
    import psutil

log = logging.getLogger("textmill")

_LOOK_SECONDS = 0.5
_AGAIN_SECONDS = 0.05
_IMPORT_SECONDS = 2.0
_END_SECONDS = 30.0  # for a last checkpoint and the end of the run
_WAIT_SECONDS = _END_SECONDS + 5.0


LAUNCHED = "TEXTMILL_LAUNCHED"
"""Environment variable of the ranks that a launcher started: the file where one notes an error that ends them all."""


def is_launched() -> bool:
    """Return whether a launcher started this process as a rank of a training."""
    return LAUNCHED in os.environ


def is_first_process() -> bool:
    """Return whether this process has rank 0, and so writes and logs; works before ranks connect."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")
    return all(int(os.environ.get(name, "0") or 0) == 0 for name in names)


def exit_on_signals() -> None:
    """Let SIGTERM exit with status 143 and Ctrl-C raise KeyboardInterrupt, but not within an import.

    Some libraries import modules from C++, where an exception ends the process by "terminate called" (134). An
    import that lasts is cut off by ending the process at once: whatever it would have done has not begun.
    """
    since: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            since.append(time.monotonic())
            if since[-1] - since[0] > _IMPORT_SECONDS:
                os._exit(128 + number)
            again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def end_on_signals() -> None:
    """Let SIGTERM and Ctrl-C end the process at once: libraries print an exception that is raised while they close."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def end_family(process: subprocess.Popen[Any], seconds: float) -> None:
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


def end_with_starter(name: str) -> None:
    """End this process once the one that started it is dead: DVC for a stage, the first rank or a launcher for a rank.

    DVC that is killed cannot end its stage, which would write on beside the stage of the next
    `dvc repro`. The process gets SIGTERM, and SIGKILL with its descendants half a minute later. A
    stage that was started by hand is not watched: it may outlive its shell.
    """
    is_rank = is_launched() or int(os.environ.get("LOCAL_RANK") or 0) > 0
    if not (is_rank or "DVC_STAGE" in os.environ):
        return
    import psutil

    starter = psutil.Process().parent() if is_rank else _dvc()

    def watch() -> None:
        while starter is not None and _runs(starter):
            time.sleep(_LOOK_SECONDS)
        log.warning("%s: ends, because the process that started it is dead", name)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        time.sleep(_END_SECONDS)
        for member in [*psutil.Process().children(recursive=True), psutil.Process()]:
            _send(member, signal.SIGKILL)

    threading.Thread(target=watch, name="watch-starter", daemon=True).start()


@contextmanager
def only_writer(lock: Path, output: str) -> Iterator[None]:
    """Hold the file `lock` while this process writes `output`; wait for another one that is ending.

    The operating system releases the lock when the process dies. Ranks but the first are let through.

    Raises:
        UserError: Another process holds it for longer than an ending one takes.
    """
    if not is_first_process():
        yield
        return
    from filelock import FileLock, Timeout

    holder = lock.with_suffix(".pid")
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        try:
            held.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for process %s, which writes %s", _read(holder), output)
            held.acquire(timeout=_WAIT_SECONDS)
    except Timeout as error:
        pid = _read(holder)
        fix = f"Wait for it, or end it with `kill {pid}`; then run the command again"
        raise UserError(f"process {pid} is writing {output}", fix=fix) from error
    try:
        holder.write_text(str(os.getpid()))
        yield
    finally:
        held.release()


def _dvc() -> psutil.Process | None:
    """Return DVC: the nearest ancestor that has not got `DVC_STAGE` from it; None if it died before."""
    import psutil

    stage, starter = os.environ["DVC_STAGE"], psutil.Process().parent()
    with suppress(psutil.Error, OSError):
        while starter is not None and starter.environ().get("DVC_STAGE") == stage:  # a shell or a wrapper
            starter = starter.parent()
    with suppress(OSError):
        # The process that adopts an orphan is of another group; a wrapper such as `setsid` makes a new one.
        if starter is not None and os.getpgrp() not in (os.getpid(), os.getpgid(starter.pid)):
            return None
    return starter


def _read(holder: Path) -> str:
    with suppress(OSError):
        return holder.read_text().strip() or "?"
    return "?"


def _send(process: psutil.Process, number: signal.Signals) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _runs(process: psutil.Process) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
