"""Name a process so that others can tell whether it still runs."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process of a machine.

    Attributes:
        machine: Host, boot and process namespace, within which a pid is unique.
        pid: Process id on that machine.
        started: Start time of the process by the machine's clock; detects a reused pid.
    """

    machine: str
    pid: int
    started: float

    def is_dead(self) -> bool:
        """Return whether the process has ended; False for processes of other machines that run."""
        import psutil

        if self.machine != own_machine():
            # The same host after a restart: everything before it has ended.
            return _host(self.machine) == _host(own_machine()) and _boot(self.machine) != _boot(own_machine())
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() != self.started or process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def as_text(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> ProcessIdentity:
        """Parse a line of `as_text`."""
        return cls(**json.loads(text))


def own_identity() -> ProcessIdentity:
    """Return the identity of this process."""
    import psutil

    return ProcessIdentity(own_machine(), os.getpid(), psutil.Process().create_time())


def own_machine() -> str:
    """Return host, boot and process namespace, within which a pid is unique."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if boot.is_file() and namespace.is_symlink():
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return " ".join(parts)


def _host(machine: str) -> str:
    return machine.partition(" ")[0]


def _boot(machine: str) -> str:
    return machine.partition(" ")[2].partition(" ")[0]
