"""ASGI middleware that counts and times all requests, and closes connections while draining."""

from __future__ import annotations

import asyncio
import time
from functools import cache
from typing import TYPE_CHECKING

from textmill.serving.limits import unavailable
from textmill.serving.metrics import ServingMetrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Other paths count as one, so that a client cannot create any number of metrics.
_PATHS = frozenset(
    {
        *(
            "/predict",
            "/generate",
            "/feedback",
            "/health",
            "/ready",
            "/metrics",
            "/trial",
            "/version",
            "/docs",
            "/openapi.json",
        ),
        *("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
    }
)


class Traffic:
    """State of the requests of one server.

    Attributes:
        draining: Whether the server is shutting down.
        in_progress: Number of requests being answered.
        cut_off: Number of requests cancelled at shutdown.
        last_arrival: Start of the last request, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.draining = False
        self.cut_off = 0
        self.in_progress = 0
        self.last_arrival = time.monotonic()


class TrafficMiddleware:
    """Middleware that measures the requests to an application."""

    def __init__(self, app: ASGIApp, traffic: Traffic, metrics: ServingMetrics) -> None:
        self.app = app
        self.traffic = traffic
        self.metrics = metrics
        self._requests = cache(metrics.requests.labels)
        self._seconds = cache(metrics.seconds.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; record its status and duration."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # answered as GET; Uvicorn leaves out the body
            scope = {**scope, "method": "GET"}
        path = scope["path"] if scope["path"] in _PATHS else "other"
        status, response_started = 500, False
        traffic = self.traffic

        async def send_recorded(message: Message) -> None:
            nonlocal status, response_started
            if message["type"] == "http.response.start":
                status, response_started = message["status"], True
                if traffic.draining:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        started = traffic.last_arrival = time.monotonic()
        traffic.in_progress += 1
        self.metrics.in_progress.set(traffic.in_progress)
        try:
            await self.app(scope, receive, send_recorded)
        except asyncio.CancelledError:  # only at shutdown, when a request takes too long
            traffic.cut_off += 1
            if not response_started:
                await unavailable("the server is shutting down; try again").response()(scope, receive, send_recorded)
        finally:
            traffic.in_progress -= 1
            self.metrics.in_progress.set(traffic.in_progress)
            self._requests(path, str(status)).inc()
            self._seconds(path).observe(time.monotonic() - started)
