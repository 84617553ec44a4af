"""Load the model to serve, and replace it without a restart when the registry names another version."""

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

_MAX_WAIT_SECONDS = 300.0
_STOP_SECONDS = 0.2


class Watcher:
    """Keeps `current` at the version that its source names.

    A new version is fetched, verified and warmed up while the old one serves; then one assignment replaces
    `current`. After a failure the old version keeps serving. The failure is logged and counted, and
    loading is retried at growing intervals.

    Attributes:
        current: The model to serve; None before the first is loaded.
        on_check: Called with the current model after each check, in the thread that watches.
    """

    def __init__(self, source: ModelSource, load: Load, metrics: ServingMetrics, poll_seconds: float) -> None:
        self.current: LoadedModel | None = None
        self.on_check: Callable[[LoadedModel | None], None] | None = None
        self._source = source
        self._load = load
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._version: str | None = None
        self._stopped = threading.Event()
        self._problem: str | None = None
        self._refused: str | None = None
        self._refusals = 0
        self._retry_at = 0.0

    def start(self, on_failure: Callable[[BaseException], None]) -> None:
        """Load the first model and watch the source, in a thread that calls `on_failure` if the load fails."""
        self._thread = threading.Thread(target=self._run, args=(on_failure,), name="watch", daemon=True)
        self._thread.start()

    def stop(self, seconds: float | None = _STOP_SECONDS) -> bool:
        """Stop watching; return False while a load or a check is in progress, which nothing can interrupt.

        `seconds` is the time to wait for it, None for any.
        """
        self._stopped.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, on_failure: Callable[[BaseException], None]) -> None:
        try:
            self._replace_model(self._source.latest())
        except BaseException as error:
            on_failure(error)
            return
        if not self._source.follows and self.on_check is None:
            return
        self._metrics.registry_up.set(1)
        while not self._stopped.wait(self._poll_seconds):
            self.check()
            if self.on_check:
                self.on_check(self.current)

    def check(self) -> None:
        """Check the source once and follow it."""
        try:
            wanted = self._source.latest()
        except Exception as error:
            self._metrics.registry_up.set(0)
            self._warn(f"the registry does not answer, {self._serving()} keeps serving: {describe(error)}")
            return
        self._metrics.registry_up.set(1)
        if wanted == self._version:
            if self._problem is not None:
                log.info("serve: the registry names the served version again")
            self._problem, self._refused = None, None
            return
        if wanted == self._refused and time.monotonic() < self._retry_at:
            return
        try:
            self._replace_model(wanted)
        except Exception as error:
            self._refuse(wanted, error)

    def _replace_model(self, version: str) -> None:
        model = self._load(version)
        before, self.current = self.current, model
        self._version, self._refused, self._problem = version, None, None
        self._metrics.set_model(model.identity, before.identity if before else None)
        log.info("serve: serving %s%s", model.identity, f" instead of {before.identity}" if before else "")

    def _refuse(self, version: str, error: Exception) -> None:
        self._refusals = self._refusals + 1 if version == self._refused else 1
        self._refused = version
        wait = min(_MAX_WAIT_SECONDS, self._poll_seconds * 2**self._refusals)
        self._retry_at = time.monotonic() + wait
        self._metrics.refused.labels(version).inc()
        self._warn(f"version {version} is refused, {self._serving()} keeps serving: {describe(error)}")

    def _warn(self, problem: str) -> None:
        """Log a problem once, not at every check."""
        if problem != self._problem:
            log.warning("serve: %s", problem)
        self._problem = problem

    def _serving(self) -> str:
        return str(self.current.identity) if self.current else "nothing"


def describe(error: BaseException) -> str:
    """Return an error as one line, as a user sees it."""
    translated = error if isinstance(error, UserError) else translate(error)
    return str(translated) if translated else " ".join(f"{type(error).__name__}: {error}".split())
