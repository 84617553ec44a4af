"""One promotion at a time: a lock kept in the tags of a registered model.

MLflow has no compare-and-set, but its tags are registers that one process writes and all can read.
That is all that Lamport's bakery needs ("A New Solution of Dijkstra's Concurrent Programming
Problem", CACM 1974): each process writes a claim of its own, takes a number above all that it sees,
and waits for the smaller ones. A SQLite store is guarded by a lock of its file too.

A claim that its process left behind is told by the dead process on the same machine, or, from
another machine, by a minute of silence. So a process must not write after half a minute; `Held`
refuses that, and looks whether its claim still stands before each write. What remains is a process
that is suspended for a minute exactly between that look and its write.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.errors import UserError
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import answers_soon, database_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

CLAIM = f"{PREFIX}claim."

_HOLD_SECONDS = 30.0
_SILENT_SECONDS = 60.0
_BEAT_SECONDS = 5.0
_WAIT_SECONDS = 150.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Claim:
    """What a process writes while it wants or has the lock.

    Attributes:
        number: Its place in the queue; 0 while it is choosing.
        machine: Where it runs: host, boot and process namespace.
        pid: Its process there.
        started: When that process began, by the machine's clock, so that a reused pid is told apart.
        beat: Counts up while it waits.
    """

    number: int
    machine: str
    pid: int
    started: float
    beat: int = 0


class Held:
    """The lock, as its holder has it."""

    def __init__(self, client: MlflowClient, name: str, key: str) -> None:
        self._client, self._name, self._key = client, name, key
        self._since = _clock()

    def check(self) -> None:
        """Make sure that the lock is still held, right before a write.

        Raises:
            UserError: It took too long; nothing more may be written.
        """
        late = _clock() - self._since > _HOLD_SECONDS
        if late or self._key not in self._client.get_registered_model(self._name).tags:
            raise UserError(
                f"the store was too slow: the lock on {self._name} ran out",
                fix="Run the same command again; it first completes or undoes what was begun",
            )


@contextmanager
def promotion_lock(client: MlflowClient, name: str, uri: str) -> Iterator[Held]:
    """Hold the lock of a registered model.

    Raises:
        UserError: Another process holds it for minutes.
    """
    from filelock import FileLock, Timeout

    key = f"{CLAIM}{uuid.uuid4().hex}"
    with ExitStack() as stack:
        stack.enter_context(answers_soon())
        if database := database_file(uri):
            try:
                stack.enter_context(FileLock(f"{database}-promotion-lock", timeout=_WAIT_SECONDS))
            except Timeout as error:
                raise _taken(name, "another process of this machine") from error
        stack.callback(client.delete_registered_model_tag, name, key)
        _queue(client, name, key)
        yield Held(client, name, key)


def _queue(client: MlflowClient, name: str, key: str) -> None:
    """Take a number and wait until it is the smallest."""
    claim = _own_claim()
    beaten = _clock()
    _write(client, name, key, claim)
    claim = replace(claim, number=1 + max((other.number for other in _claims(client, name).values()), default=0))
    _write(client, name, key, claim)
    seen: dict[str, tuple[Claim, float]] = {}
    end = _clock() + _WAIT_SECONDS
    while True:
        claims = _claims(client, name)
        now = _clock()
        # Others may have taken this process for dead, and its claim may stand only because it wrote again.
        if claims.pop(key, None) is None or now - beaten > _HOLD_SECONDS:
            raise _taken(name, "another process")
        before = {
            other: found
            for other, found in claims.items()
            if found.number == 0 or (found.number, other) < (claim.number, key)
        }
        if not before:
            return
        for other, found in before.items():
            if other not in seen or seen[other][0] != found:
                seen[other] = (found, now)
            if _is_dead(found) or now - seen[other][1] > _SILENT_SECONDS:
                client.delete_registered_model_tag(name, other)
        if now > end:
            first = min(before.values(), key=lambda found: found.number)
            raise _taken(name, f"process {first.pid} on {first.machine.split()[0]}")
        if now - beaten > _BEAT_SECONDS:
            claim, beaten = replace(claim, beat=claim.beat + 1), now
            _write(client, name, key, claim)
        time.sleep(_LOOK_SECONDS)


def _clock() -> float:
    """Seconds that pass even while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _taken(name: str, who: str) -> UserError:
    return UserError(f"{who} is promoting a version of {name}", fix="Wait for it, then run the same command again")


def _claims(client: MlflowClient, name: str) -> dict[str, Claim]:
    tags: Mapping[str, str] = client.get_registered_model(name).tags
    return {key: Claim(**json.loads(value)) for key, value in tags.items() if key.startswith(CLAIM)}


def _write(client: MlflowClient, name: str, key: str, claim: Claim) -> None:
    client.set_registered_model_tag(name, key, json.dumps(asdict(claim)))


def _own_claim() -> Claim:
    import psutil

    return Claim(0, _machine(), os.getpid(), psutil.Process().create_time())


def _is_dead(claim: Claim) -> bool:
    """Whether the process is known to have ended; of another machine nothing is known."""
    import psutil

    if claim.machine != _machine():
        return False
    try:
        return bool(psutil.Process(claim.pid).create_time() != claim.started)
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Host, boot and process namespace: where a pid means one process."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if boot.is_file() and namespace.is_symlink():
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return " ".join(parts)
