"""Log entries of a stage on disk until the tracking server has them, so that no stage waits for a server.

Each stage that logs to a server has a folder in `layout.spool`: `entries.jsonl`, copies of artifacts, and
`state.json` with the run id and the position up to which the server has the entries. A thread sends
them. A folder that remains is sent by the next stage or by `textmill sync`; a lock says whether its process
still writes. Every entry can be sent twice, see `entries`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError
from textmill.files import read_json
from textmill.registry.runs.entries import Entry, apply_entry, merge_metrics
from textmill.registry.runs.opening import Opened, Opening, open_run
from textmill.registry.runs.store import UnreachableError, ensure_experiment, tracking_errors, without_credentials

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

log = logging.getLogger("textmill")

_ENTRIES, _STATE, _HEADER, _LOCK, _ARTIFACTS = "entries.jsonl", "state.json", "header.json", "lock", "artifacts"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0
_PATIENCE_SECONDS = 3.0
_INTERRUPTED_SECONDS = 1.0
_BYTES_A_SECOND = 1_000_000  # a slower upload is left to `textmill sync`


@dataclass
class State:
    """The run of a spool, and the position in its entries up to which the server has them."""

    run_id: str | None = None
    last_steps: dict[str, int] = field(default_factory=dict)
    position: int = 0


class Spool:
    """The entries of one stage, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        header = read_json(folder / _HEADER)
        self.uri = str(header["uri"])
        self.root = Path(header["root"])
        self.opening = Opening(**header["opening"])
        self.state = State(**read_json(folder / _STATE))
        self.lock: FileLock | None = None  # held by the process that writes

    @classmethod
    def create(cls, parent: Path, uri: str, root: Path, opening: Opening, opened: Opened | None) -> Spool:
        """Make the folder of a stage that starts now; it stays locked until this process ends."""
        name = f"{time.time_ns():020d}-{opening.stage}"
        partial = parent / f".{name}-{uuid.uuid4().hex[:8]}"
        partial.mkdir(parents=True)
        lock = _try_lock(partial)
        header = {"uri": without_credentials(uri), "root": str(root), "opening": asdict(opening)}
        (partial / _HEADER).write_text(json.dumps(header), encoding="utf-8")
        state = State(opened.run_id, opened.last_steps) if opened else State()
        (partial / _STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
        (partial / _ENTRIES).touch()
        partial.rename(parent / name)
        spool = cls(parent / name)
        spool.lock = lock
        return spool

    def size(self) -> int:
        """Return the number of bytes that wait."""
        waiting = (self.folder / _ENTRIES).stat().st_size - self.state.position
        return waiting + sum(path.stat().st_size for path in (self.folder / _ARTIFACTS).rglob("*") if path.is_file())

    def is_in_use(self) -> bool:
        """Return whether a process still writes to it."""
        lock = _try_lock(self.folder)
        if lock is not None:
            lock.release()
        return lock is None

    def unsent(self) -> Iterator[tuple[int, Entry]]:
        """Yield the entries that the server does not have, with the position after each."""
        position = self.state.position
        with (self.folder / _ENTRIES).open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):  # still being written, or cut off by a kill
                    return
                position += len(line)
                yield position, json.loads(line)

    def send(self, client: MlflowClient, progress: Callable[[int], None] = lambda _: None) -> bool:
        """Send what the server does not have; return whether the stage's end was among it.

        `progress` gets the size of a file before it is sent, and 0 when the server has an entry.

        Raises:
            UserError: The server does not answer, or refuses.
        """
        ended = False
        with tracking_errors(self.uri):
            if self.state.run_id is None:
                ensure_experiment(self.opening.experiment)
                opened = open_run(client, self.opening, self.root)
                self.state = State(opened.run_id, opened.last_steps)
                self._save()
            for position, entry in merge_metrics(self.unsent()):
                path = self.folder / entry["path"] if entry["kind"] == "artifacts" else None
                if path:
                    progress(max(path.stat().st_size, 1))
                apply_entry(client, str(self.state.run_id), entry, self.state.last_steps, self.folder)
                ended = ended or entry["kind"] == "end"
                self.state.position = position
                self._save()
                progress(0)
        return ended

    def remove(self) -> None:
        """Delete the folder; the server has everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self) -> None:
        partial = self.folder / f".{_STATE}"
        partial.write_text(json.dumps(asdict(self.state)), encoding="utf-8")
        partial.replace(self.folder / _STATE)


class SpooledLog:
    """Write the entries of a running stage to its spool, which a thread sends to the server.

    Args:
        spool: The stage's spool.
        connect: Open the store and return its client; None sends nothing.
    """

    def __init__(self, spool: Spool, connect: Callable[[], MlflowClient] | None) -> None:
        self._spool = spool
        self._connect = connect
        self._lock = threading.Lock()
        self._file = (spool.folder / _ENTRIES).open("ab", buffering=0)
        self._news = threading.Event()
        self._finished = threading.Event()
        self._ending = False
        self._moved = time.monotonic()
        self._uploading = 0
        self.problem: UserError | None = None
        if connect is not None:
            threading.Thread(target=self._send_all, name="textmill-spool", daemon=True).start()

    def add(self, entry: Entry) -> None:
        """Append an entry.

        Raises:
            OSError: The disk is full, with the path of the spool.
        """
        if entry["kind"] == "artifacts":
            for part in self._copied(Path(entry["path"]), entry["folder"]):
                self._write(part)
        else:
            self._write(entry)

    def close(self, status: str) -> None:
        """Append the end, and wait while the server takes the rest: at most three seconds without progress.

        After an interruption it waits at most one second. What remains stays on disk.
        """
        self._ending = True
        self.add({"kind": "end", "status": status, "time": int(time.time() * 1000)})
        with suppress(OSError):
            os.fsync(self._file.fileno())
        if self._connect is not None:
            last = time.monotonic() + _INTERRUPTED_SECONDS if status == "KILLED" else float("inf")
            self._moved = time.monotonic()
            while not self._finished.wait(0.05) and time.monotonic() < last:
                if time.monotonic() - self._moved > _PATIENCE_SECONDS + self._uploading / _BYTES_A_SECOND:
                    break
        self._file.close()
        if not self._finished.is_set():
            why = str(self.problem).rstrip(".") if self.problem else "the tracking server has not taken everything yet"
            log.warning("%s: %s; the rest is kept in %s", self._spool.opening.stage, why, self._spool.folder)
            log.warning("%s: `textmill sync` or the next stage sends it", self._spool.opening.stage)

    def _write(self, entry: Entry) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        path = self._spool.folder / _ENTRIES
        with self._lock, _named(path):
            before = path.stat().st_size
            if self._file.write(line) != len(line):  # the disk is full in the middle of a line
                os.truncate(path, before)
                self._file.write(line)
        self._news.set()

    def _copied(self, path: Path, folder: str | None) -> Iterator[Entry]:
        """Copy a file, or each file of a folder, into the spool; yield their entries."""
        for source in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not source.is_file():
                continue
            inside = source.relative_to(path).parent.as_posix() if path.is_dir() else "."
            target = self._spool.folder / _ARTIFACTS / uuid.uuid4().hex[:12] / source.name
            with _named(target):
                target.parent.mkdir(parents=True)
                shutil.copyfile(source, target)
            place = "/".join(part for part in (folder, inside) if part and part != ".")
            yield {
                "kind": "artifacts",
                "path": target.relative_to(self._spool.folder).as_posix(),
                "folder": place or None,
            }

    def _send_all(self) -> None:
        """Send entries as they come, until the end; after a failure wait longer and longer."""
        pause = 0.0
        while True:
            if pause:
                self._wait_again(pause)
            else:
                self._news.wait()
            self._news.clear()
            try:
                assert self._connect is not None
                ended = self._spool.send(self._connect(), self._progress)
            except Exception as error:  # whatever it is, training goes on
                self._tell(error if isinstance(error, UserError) else UserError(str(error)))
                pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                continue
            if self.problem is not None:
                log.info("%s: the tracking server answers again", self._spool.opening.stage)
                self.problem = None
            pause = 0.0
            if ended:
                self._spool.remove()
                self._finished.set()
                return

    def _wait_again(self, pause: float) -> None:
        end = time.monotonic() + pause
        while time.monotonic() < end and not self._ending:
            time.sleep(0.1)
        if self._ending:
            time.sleep(0.5)

    def _progress(self, size: int) -> None:
        self._uploading = size
        if not size:  # the next try of what failed is no progress
            self._moved = time.monotonic()

    def _tell(self, error: UserError) -> None:
        if self.problem is None:
            kept = f"metrics and artifacts are kept in {self._spool.folder} until it takes them"
            log.warning("%s: %s; %s", self._spool.opening.stage, str(error).rstrip("."), kept)
        self.problem = error


@dataclass(frozen=True)
class Sent:
    """What became of a spool: `sent`, `in use`, `waits` (no answer), `refused`, or `elsewhere` (another server)."""

    folder: Path
    stage: str
    run_id: str | None
    outcome: str
    why: str = ""


def waiting_spools(parent: Path) -> list[Spool]:
    """Return the spools that are left, the oldest first."""
    return [Spool(folder) for folder in sorted(parent.glob("[0-9]*")) if (folder / _HEADER).is_file()]


def send_waiting(parent: Path, uri: str, client: MlflowClient, *, skip: Path | None = None) -> list[Sent]:
    """Send every spool that no process writes to, the oldest first.

    A stage that was killed has no end among its entries; its run becomes KILLED. A spool of a run that
    an earlier, refused one should have opened stays too.
    """
    results: list[Sent] = []
    stuck: set[str | None] = set()
    for spool in waiting_spools(parent):
        if spool.folder == skip:
            continue
        result = _send_one(spool, uri, client, stuck, bool(results) and results[-1].outcome == "waits")
        if result.outcome != "sent":
            stuck.update({spool.opening.local_id, spool.state.run_id} - {None})
        results.append(result)
    return results


def _send_one(spool: Spool, uri: str, client: MlflowClient, stuck: set[str | None], silent: bool) -> Sent:
    def end(outcome: str, why: str = "") -> Sent:
        return Sent(spool.folder, spool.opening.stage, spool.state.run_id, outcome, why)

    if not spool.folder.is_dir():  # another process sent it just now
        return end("sent")
    if spool.uri != without_credentials(uri):
        return end("elsewhere", f"it belongs to {spool.uri}")
    lock = _try_lock(spool.folder)
    if lock is None:
        return end("in use", "its stage is still at work")
    try:
        spool = Spool(spool.folder)  # its state may have moved
        if silent:
            return end("waits", "the tracking server does not answer")
        if spool.opening.previous in stuck:
            return end("waits", "an earlier stage of its run waits")
        ended = spool.send(client)
        if not ended and not _has_end(spool):
            with tracking_errors(uri):
                last = int((spool.folder / _ENTRIES).stat().st_mtime * 1000)
                entry = {"kind": "end", "status": "KILLED", "time": last}
                apply_entry(client, str(spool.state.run_id), entry, {}, spool.folder)
        spool.remove()
        return end("sent")
    except UserError as error:
        return end("waits" if isinstance(error, UnreachableError) else "refused", str(error))
    finally:
        lock.release()


def _try_lock(folder: Path) -> FileLock | None:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _has_end(spool: Spool) -> bool:
    with (spool.folder / _ENTRIES).open("rb") as file:
        return any(json.loads(line)["kind"] == "end" for line in file if line.endswith(b"\n"))


class _named:  # noqa: N801 - used as a statement
    """Give an OSError the path that it misses, for the message of a full disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(self._path)
