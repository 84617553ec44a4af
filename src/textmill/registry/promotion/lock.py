"""A lock in the tags of a registered model: one promotion at a time.

MLflow's only compare-and-set is a run's write-once parameter. It needs a run on which all processes
agree, which is a lock again. But each tag is a register that one process writes and all can read.
Lamport's bakery algorithm needs no more ("A New Solution of Dijkstra's Concurrent Programming
Problem", CACM 1974): each process writes its own claim, takes a number above all others, and waits for
the smaller ones. A file lock also guards a SQLite store.

A claim is abandoned if its process on the same machine is dead, or if a process on another machine is
silent for a minute. A process must therefore not write after half a minute. `HeldLock` checks this, and
that its claim still exists, before each write. A gap remains: a process that is suspended for a minute
between this check and its write.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from textmill.errors import UserError
from textmill.registry.runs.identity import ProcessIdentity, own_identity
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import database_file, short_timeout

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
    """The tag of a process that waits for the lock or holds it.

    Attributes:
        number: Place in the queue; 0 while the process chooses.
        machine: Host, boot and process namespace.
        pid: Process id on that machine.
        started: Start time of the process by the machine's clock; detects a reused pid.
        beat: Counter that increases while the process waits.
    """

    number: int
    machine: str
    pid: int
    started: float
    beat: int = 0


class HeldLock:
    """The lock in the hands of its holder."""

    def __init__(self, client: MlflowClient, name: str, key: str) -> None:
        self._client, self._name, self._key = client, name, key
        self._since = _clock()

    def check(self) -> None:
        """Check right before a write that the lock is still held.

        Raises:
            UserError: The lock timed out; nothing more may be written.
        """
        late = _clock() - self._since > _HOLD_SECONDS
        if late or self._key not in self._client.get_registered_model(self._name).tags:
            raise UserError(
                f"the store was too slow: the lock on {self._name} timed out",
                fix="Run the command again; it first completes or undoes the interrupted move",
            )


@contextmanager
def promotion_lock(client: MlflowClient, name: str, uri: str) -> Iterator[HeldLock]:
    """Hold the lock of a registered model.

    Raises:
        UserError: Another process holds it for more than 150 s.
    """
    from filelock import FileLock, Timeout

    key = f"{CLAIM}{uuid.uuid4().hex}"
    with ExitStack() as stack:
        stack.enter_context(short_timeout())
        if database := database_file(uri):
            try:
                stack.enter_context(FileLock(f"{database}-promotion-lock", timeout=_WAIT_SECONDS))
            except Timeout as error:
                raise _taken(name, "another process of this machine") from error
        stack.callback(client.delete_registered_model_tag, name, key)
        _queue(client, name, key)
        yield HeldLock(client, name, key)


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
        # Others may have deleted the claim as abandoned, before this process wrote it again.
        if claims.pop(key, None) is None or now - beaten > _HOLD_SECONDS:
            raise _taken(name, "another process")
        before = {
            other: theirs
            for other, theirs in claims.items()
            if theirs.number == 0 or (theirs.number, other) < (claim.number, key)
        }
        if not before:
            return
        for other, theirs in before.items():
            if other not in seen or seen[other][0] != theirs:
                seen[other] = (theirs, now)
            if _is_dead(theirs) or now - seen[other][1] > _SILENT_SECONDS:
                client.delete_registered_model_tag(name, other)
        if now > end:
            first = min(before.values(), key=lambda theirs: theirs.number)
            raise _taken(name, f"process {first.pid} on {first.machine.split()[0]}")
        if now - beaten > _BEAT_SECONDS:
            claim, beaten = replace(claim, beat=claim.beat + 1), now
            _write(client, name, key, claim)
        time.sleep(_LOOK_SECONDS)


def _clock() -> float:
    """Return a clock in seconds that also counts suspended time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _taken(name: str, who: str) -> UserError:
    return UserError(f"{who} is promoting a version of {name}", fix="Wait for it, then run the command again")


def _claims(client: MlflowClient, name: str) -> dict[str, Claim]:
    tags: Mapping[str, str] = client.get_registered_model(name).tags
    return {key: Claim(**json.loads(value)) for key, value in tags.items() if key.startswith(CLAIM)}


def _write(client: MlflowClient, name: str, key: str, claim: Claim) -> None:
    client.set_registered_model_tag(name, key, json.dumps(asdict(claim)))


def _own_claim() -> Claim:
    return Claim(0, **asdict(own_identity()))


def _is_dead(claim: Claim) -> bool:
    """Return whether the process has ended; False for processes of other machines."""
    return ProcessIdentity(claim.machine, claim.pid, claim.started).is_dead()
