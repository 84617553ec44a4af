"""Loading the model to serve, and another one when the registry names another, while requests go on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from textmill.errors import UserError, translate
from textmill.serving.loading import LoadedModel, ModelSource
from textmill.serving.metrics import ServingMetrics

log = logging.getLogger("textmill")

Load = Callable[[str], LoadedModel]

_LONGEST_WAIT_SECONDS = 300.0


class Watcher:
    """Keeps `current` the model that its source names.

    A new version is fetched, checked and warmed up beside the one that serves; only then `current`
    is replaced, in one assignment. A version that fails is refused: it is named in log and
    metrics, tried again at growing intervals, and the one before it goes on serving.

    Args:
        source: Says which version is wanted.
        load: Makes a version of that source ready to answer.
        metrics: Told about loads, refusals and whether the registry answers.
        poll_seconds: Time between two looks.
    """

    def __init__(self, source: ModelSource, load: Load, metrics: ServingMetrics, poll_seconds: float) -> None:
        self.current: LoadedModel | None = None
        self._source = source
        self._load = load
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._version: str | None = None
        self._stopped = threading.Event()
        self._complaint: str | None = None
        self._refused: str | None = None
        self._refusals = 0
        self._retry_at = 0.0

    def start(self, on_failure: Callable[[BaseException], None]) -> None:
        """Load the first model and go on watching, in a thread of its own.

        Args:
            on_failure: Told, in that thread, why there is no first model.
        """
        threading.Thread(target=self._run, args=(on_failure,), name="watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more. A load that has begun is abandoned with the process."""
        self._stopped.set()

    def _run(self, on_failure: Callable[[BaseException], None]) -> None:
        try:
            self._put_into_service(self._source.latest())
        except BaseException as error:
            on_failure(error)
            return
        if not self._source.follows:
            return
        self._metrics.registry_up.set(1)
        while not self._stopped.wait(self._poll_seconds):
            self.look()

    def look(self) -> None:
        """Ask the source once, and follow it."""
        try:
            wanted = self._source.latest()
        except Exception as error:
            self._metrics.registry_up.set(0)
            self._complain(f"the registry cannot be asked, {self._serving()} goes on: {_told(error)}")
            return
        self._metrics.registry_up.set(1)
        if wanted == self._version:
            if self._complaint is not None:
                log.info("serve: the registry names the served version again")
            self._complaint, self._refused = None, None
            return
        if wanted == self._refused and time.monotonic() < self._retry_at:
            return
        try:
            self._put_into_service(wanted)
        except Exception as error:
            self._refuse(wanted, error)

    def _put_into_service(self, version: str) -> None:
        model = self._load(version)
        before, self.current = self.current, model
        self._version, self._refused, self._complaint = version, None, None
        self._metrics.serves(model.identity)
        log.info("serve: %s answers%s", model.identity, f" instead of {before.identity}" if before else "")

    def _refuse(self, version: str, error: Exception) -> None:
        self._refusals = self._refusals + 1 if version == self._refused else 1
        self._refused = version
        wait = min(_LONGEST_WAIT_SECONDS, self._poll_seconds * 2**self._refusals)
        self._retry_at = time.monotonic() + wait
        self._metrics.refused.labels(version).inc()
        self._complain(f"version {version} is refused, {self._serving()} goes on: {_told(error)}")

    def _complain(self, complaint: str) -> None:
        """Log a trouble once, not at every look."""
        if complaint != self._complaint:
            log.warning("serve: %s", complaint)
        self._complaint = complaint

    def _serving(self) -> str:
        return str(self.current.identity) if self.current else "nothing"


def _told(error: BaseException) -> str:
    """One line about an error, whether a user can mend it or not."""
    told = error if isinstance(error, UserError) else translate(error)
    return str(told) if told else " ".join(f"{type(error).__name__}: {error}".split())
