"""Keep a share of the requests with their answers, and what users answer to them, as Parquet files.

An answer never waits: requests pass through a bounded queue to a thread that masks and writes them.
"""

from __future__ import annotations

import importlib
import logging
import random
import re
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from textmill.errors import UserError, first_line
from textmill.serving.limits import RequestError, unavailable

if TYPE_CHECKING:
    from textmill.serving.loading import LoadedModel
    from textmill.serving.metrics import ServingMetrics
    from textmill.serving.settings import ServeSettings

log = logging.getLogger("textmill")

REQUESTS, FEEDBACK = "requests", "feedback"
"""Folders of the captured requests and of the right answers: a folder a day, a file every `_WRITE_SECONDS`."""
REQUEST_HEADER = "X-Textmill-Request"

_QUEUED = 10_000  # rows that wait to be written; further ones are dropped and counted
_RECENT = 10_000  # requests that feedback may still capture
_RECENT_CHARACTERS = 16 << 20
_WRITE_SECONDS = 10.0
_WRITE_ROWS = 1000
_MEASURE_SECONDS = 1.0
_DAY_SECONDS = 86_400
_DAY, _OWN = re.compile(r"\d{4}-\d\d-\d\d"), re.compile(r"\d{6}-[0-9a-f]{12}\.parquet|\.\d{6}-[0-9a-f]{12}")


@dataclass(frozen=True)
class _Request:
    """A request and its answers."""

    id: str
    time: datetime
    model: LoadedModel
    values: Sequence[Any]
    answers: Sequence[Any]


@dataclass(frozen=True)
class _Right:
    """A right answer to one input of a request."""

    request: str
    position: int
    time: datetime
    answer: Any


class Capture:
    """Writes requests, answers and feedback below a folder.

    Args:
        folder: Where to write.
        settings: Share, limits and masks.
        metrics: Counts what was written and dropped.

    Raises:
        UserError: The folder cannot be written, or the mask does not exist.
    """

    def __init__(self, folder: Path, settings: ServeSettings, metrics: ServingMetrics) -> None:
        self._folder = folder
        self._settings = settings
        self._metrics = metrics
        self._mask = load_mask(settings.capture_mask)
        self._queue: Queue[_Request | _Right] = Queue(_QUEUED)
        self._recent: OrderedDict[str, _Request] = OrderedDict()
        self._characters = 0
        self._written: dict[Path, frozenset[str]] = {}
        self._taken: set[str] = set()
        self._full = False
        self._measured = 0.0
        self._measuring = threading.Lock()
        self._warned: set[str] = set()
        self._stop = threading.Event()
        try:
            for name in (REQUESTS, FEEDBACK):
                (folder / name).mkdir(parents=True, exist_ok=True)
            probe = folder / f".{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            fix = "Give a folder that the server may write"
            raise UserError(f"cannot be written ({error.strerror})", where=str(folder), fix=fix) from error
        self._remove_old()
        self._measure()
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        self._thread.start()

    def take(self, model: LoadedModel, values: Sequence[Any], answers: Sequence[Any]) -> str:
        """Return a request's identifier; write the request with the probability of `capture_share`."""
        now = datetime.now(UTC)
        taken = _Request(f"{time.time_ns():016x}{random.getrandbits(32):08x}", now, model, values, answers)
        if random.random() < self._settings.capture_share:
            self._put(taken)
        self._remember(taken)
        return taken.id

    def model_of(self, request: str) -> LoadedModel | None:
        """Return the model that answered a request; None if the request is no longer in memory."""
        known = self._recent.get(request)
        return known.model if known else None

    def knows(self, request: str, position: int) -> bool:
        """Return whether feedback to a request can be used; reads the identifiers of the files."""
        if known := self._recent.get(request):
            return position < len(known.values)
        return f"{request}/{position}" in self._identifiers()

    def require_space(self) -> None:
        """Raise RequestError (507) if the folder is full; measures it, at most once a second."""
        if time.monotonic() - self._measured > _MEASURE_SECONDS:
            self._measure()
        if self._full:
            raise RequestError(507, "the folder of captured requests is full")

    def give(self, request: str, position: int, answer: Any) -> None:
        """Write the right answer to an input, and its request if that was not written; see `require_space`.

        Raises:
            RequestError: 503 if too much waits to be written.
        """
        known = self._recent.get(request)
        if known is not None and request not in self._taken and not self._put(known):
            raise unavailable("too much feedback at once; try again")
        if not self._put(_Right(request, position, datetime.now(UTC), answer)):
            raise unavailable("too much feedback at once; try again")

    def close(self) -> None:
        """Write what waits, and stop."""
        self._stop.set()
        self._thread.join(_WRITE_SECONDS)

    def _put(self, item: _Request | _Right) -> bool:
        try:
            self._queue.put_nowait(item)
        except Full:
            self._metrics.captured.labels("dropped").inc()
            return False
        if isinstance(item, _Request):
            self._taken.add(item.id)
        return True

    def _remember(self, taken: _Request) -> None:
        self._recent[taken.id] = taken
        self._characters += len(str(taken.values))
        while len(self._recent) > _RECENT or (self._characters > _RECENT_CHARACTERS and len(self._recent) > 1):
            oldest, dropped = self._recent.popitem(last=False)
            self._characters -= len(str(dropped.values))
            self._taken.discard(oldest)

    def _identifiers(self) -> frozenset[str]:
        """Return the identifiers and positions of all written inputs."""
        import pyarrow.parquet as pq

        for path in (self._folder / REQUESTS).glob("*/*.parquet"):
            if path not in self._written:
                try:
                    table = pq.read_table(path, columns=["request", "position"]).to_pydict()
                except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
                    log.warning("serve: %s cannot be read (%s)", path, first_line(error))
                    table = {"request": [], "position": []}
                pairs = zip(table["request"], table["position"], strict=True)
                self._written[path] = frozenset(f"{request}/{position}" for request, position in pairs)
        return frozenset().union(*list(self._written.values()))

    def _work(self) -> None:
        """Write every few seconds; a failed write is tried again with the next."""
        waiting: list[_Request | _Right] = []
        due = time.monotonic() + _WRITE_SECONDS
        while True:
            stopping = self._stop.is_set()
            try:
                waiting.append(self._queue.get(timeout=0.2))
                while len(waiting) < _QUEUED:
                    waiting.append(self._queue.get_nowait())
            except Empty:
                pass
            if waiting and (stopping or len(waiting) >= _WRITE_ROWS or time.monotonic() > due):
                try:
                    self._write(waiting)
                    waiting = []
                except Exception as error:
                    log.warning("serve: captured requests were not written (%s)", first_line(error))
                    del waiting[: max(0, len(waiting) - _QUEUED)]
                due = time.monotonic() + _WRITE_SECONDS
            if stopping and self._queue.empty():
                return

    def _write(self, items: Sequence[_Request | _Right]) -> None:
        self._remove_old()
        taken = [item for item in items if isinstance(item, _Request)]
        rights = [item for item in items if isinstance(item, _Right)]
        self._measure()
        if self._full:  # feedback that was accepted before is written all the same, with its requests
            answered = {right.request for right in rights}
            left_out = sum(len(item.answers) for item in taken if item.id not in answered)
            self._metrics.captured.labels("dropped").inc(left_out)
            taken = [item for item in taken if item.id in answered]
        requests = [row for item in taken for row in self._rows(item)]
        answers = [{**vars(right), "answer": to_json(right.answer).decode()} for right in rights]
        for name, rows in ((REQUESTS, requests), (FEEDBACK, answers)):
            if rows:
                write_rows(self._folder / name, rows)
                self._metrics.captured.labels(name).inc(len(rows))

    def _measure(self) -> None:
        """Compare the folder's size with the limit; log once that it is full, or no longer."""
        limit = self._settings.capture_max_mb << 20
        with self._measuring:
            size = 0
            for path in self._folder.glob("*/*/*.parquet"):
                with suppress(FileNotFoundError):  # removed meanwhile
                    size += path.stat().st_size
            self._measured = time.monotonic()
            if (size >= limit) == self._full:
                return
            self._full = not self._full
        state = "is full; nothing more is written" if self._full else "has space again"
        log.warning("serve: the capture folder %s %s (--capture-max-mb %d)", self._folder, state, limit >> 20)

    def _warn_once(self, kind: str, message: str, error: Exception) -> None:
        if kind not in self._warned:
            log.warning("serve: %s (%s); further ones are not reported", message, first_line(error))
        self._warned.add(kind)

    def _rows(self, taken: _Request) -> list[dict[str, Any]]:
        """Return the rows of a request; one whose mask fails is dropped, since it must not be written unmasked."""
        task = taken.model.predictor.task
        texts = task.parse_inputs(list(taken.values))
        rows = []
        for position, answer in enumerate(taken.answers):
            try:
                fields = {name: self._masked(texts[name].iloc[position]) for name in task.text_columns}
                masked = self._masked(to_json(answer).decode())
            except Exception as error:  # a function of the user's
                self._metrics.captured.labels("dropped").inc()
                self._warn_once("mask", f"--capture-mask {self._settings.capture_mask} failed, a row is dropped", error)
                continue
            rows.append(_row(taken, position, masked, fields))
        return rows

    def _masked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._mask(value)
        return self._mask(to_json(value).decode())

    def _remove_old(self) -> None:
        """Remove own files of days that are older than the limit; a failure does not keep others from being written."""
        oldest = datetime.fromtimestamp(time.time() - self._settings.capture_days * _DAY_SECONDS, UTC).date()
        try:
            for folder in [each for name in (REQUESTS, FEEDBACK) for each in (self._folder / name).iterdir()]:
                if _DAY.fullmatch(folder.name) and folder.name < oldest.isoformat() and not folder.is_symlink():
                    for path in [each for each in folder.iterdir() if _OWN.fullmatch(each.name)]:
                        path.unlink()
                        self._written.pop(path, None)
                    if not any(folder.iterdir()):
                        folder.rmdir()
        except OSError as error:
            self._warn_once("old", f"old days of {self._folder} were not removed", error)


def _row(taken: _Request, position: int, answer: str, texts: Mapping[str, Any]) -> dict[str, Any]:
    identity = taken.model.identity
    return {
        "request": taken.id,
        "position": position,
        "time": taken.time,
        "model": identity.name,
        "version": identity.version,
        "answer": answer,
        **texts,
    }


def load_mask(name: str) -> Callable[[str], str]:
    """Return the function that masks a text.

    Args:
        name: Kinds with commas between them (`email,phone,card,ip`), `none`, or `MODULE:FUNCTION`.

    Raises:
        UserError: There is no such kind or function.
    """
    from textmill.data.masking import KINDS, masker

    if name == "none":
        return lambda text: text
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot be imported ({first_line(error)})", where=f"--capture-mask {name}") from error
        return lambda text: str(found(text))
    names = [kind.strip() for kind in name.split(",")]
    if unknown := [kind for kind in names if kind not in KINDS]:
        fix = f"Use {', '.join(KINDS)}, none, or MODULE:FUNCTION"
        raise UserError(f"no mask {unknown[0]!r}", where="--capture-mask", fix=fix)
    mask = masker([kind for kind in KINDS if kind in names])
    assert mask is not None
    return lambda text: mask(text, Counter())


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a file for each day and model; it appears complete or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["time"].date().isoformat(), row.get("model", "")), []).append(row)
    for (day, _), group in groups.items():
        (folder / day).mkdir(exist_ok=True)
        name = f"{datetime.now(UTC):%H%M%S}-{uuid.uuid4().hex[:12]}"
        draft = folder / day / f".{name}"
        try:
            pq.write_table(pa.Table.from_pylist([dict(row) for row in group]), draft, compression="zstd")
            draft.replace(folder / day / f"{name}.parquet")
        finally:
            draft.unlink(missing_ok=True)
