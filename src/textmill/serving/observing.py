"""ASGI middleware around every request: counts and times it, and asks clients to leave while draining."""

from __future__ import annotations

import asyncio
import time
from functools import cache
from typing import TYPE_CHECKING

from textmill.serving.limits import busy
from textmill.serving.metrics import ServingMetrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Any other path counts as one, so that a client cannot make up metrics without end.
_PATHS = frozenset({"/predict", "/generate", "/health", "/ready", "/metrics", "/version", "/docs", "/openapi.json"})


class Traffic:
    """Requests of one server.

    Attributes:
        draining: Whether the server is about to end.
        in_progress: Requests being answered.
        cut_off: Requests that took too long at the end.
        last_arrival: When the last one began, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.draining = False
        self.cut_off = 0
        self.in_progress = 0
        self.last_arrival = time.monotonic()


class Observed:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, traffic: Traffic, metrics: ServingMetrics) -> None:
        self.app = app
        self.traffic = traffic
        self.metrics = metrics
        self._requests = cache(metrics.requests.labels)
        self._seconds = cache(metrics.seconds.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in _PATHS else "other"
        status, begun = 500, False
        traffic = self.traffic

        async def noting(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                if traffic.draining:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        started = traffic.last_arrival = time.monotonic()
        traffic.in_progress += 1
        self.metrics.in_progress.set(traffic.in_progress)
        try:
            await self.app(scope, receive, noting)
        except asyncio.CancelledError:  # only at the end of the server, to which the request took too long
            traffic.cut_off += 1
            if not begun:
                await busy("the server stops; try again").response()(scope, receive, noting)
        finally:
            traffic.in_progress -= 1
            self.metrics.in_progress.set(traffic.in_progress)
            self._requests(path, str(status)).inc()
            self._seconds(path).observe(time.monotonic() - started)
