"""Metrics of the server for Prometheus, at `/metrics`."""

from __future__ import annotations

from collections import Counter as Counts
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from textmill.serving.loading import Identity

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServingMetrics:
    """The metrics of one server, in their own Prometheus registry."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._served: Counts[Identity] = Counts()
        self._lock = Lock()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "textmill_requests", "Answered requests by path and HTTP status.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "textmill_request_seconds",
            "Time from a request's head to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge("textmill_requests_in_progress", "Requests being answered.", registry=registry)
        self.batch_rows = Histogram(
            "textmill_batch_rows", "Inputs computed together.", buckets=_ROWS, registry=registry
        )
        self.batch_seconds = Histogram(
            "textmill_batch_seconds", "Time to compute a batch.", buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("textmill_queue_rows", "Queued inputs.", registry=registry)
        self.model = Gauge(
            "textmill_model_info", "1 for the served model.", ("name", "version", "manifest_sha256"), registry=registry
        )
        self.swaps = Counter("textmill_model_loads", "Models loaded for serving.", registry=registry)
        self.refused = Counter(
            "textmill_model_refusals", "Failed attempts to load a version.", ("version",), registry=registry
        )
        self.captured = Counter(
            "textmill_captured_rows",
            "Captured rows: requests and feedback written, or dropped.",
            ("what",),
            registry=registry,
        )
        self.trial = Counter(
            "textmill_trial",
            "Requests of a shadow or canary: compared, dropped, canary, fallback; inputs agreed, differed.",
            ("what",),
            registry=registry,
        )
        self.trial_evidence = Gauge(
            "textmill_trial_evidence", "Evidence against the challenger; 1 at the start.", ("what",), registry=registry
        )
        self.trial_running = Gauge("textmill_trial_running", "1 while a challenger is tried.", registry=registry)
        self.registry_up = Gauge(
            "textmill_registry_up", "Whether the registry answered the last request.", registry=registry
        )

    def set_model(self, identity: Identity, before: Identity | None = None) -> None:
        """Record the model served from now on, instead of the one before."""
        with self._lock:  # each served model has a thread that replaces it
            self._served.update([identity])
            self._served.subtract([before] if before else [])
            self.model.clear()
            for each in +self._served:
                self.model.labels(each.name, each.version, each.manifest_sha256).set(1)
        self.swaps.inc()

    def page(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
