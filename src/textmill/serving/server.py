"""The server process: its socket, its signals, and an end that drops no accepted request."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn

from textmill.errors import UserError
from textmill.serving.access import require_token
from textmill.serving.application import Service, build_application
from textmill.serving.loading import LoadedModel, ModelSource, load_model
from textmill.serving.metrics import ServingMetrics
from textmill.serving.observing import Traffic
from textmill.serving.protocol import BoundedHead
from textmill.serving.settings import ServeSettings
from textmill.serving.watching import Watcher

log = logging.getLogger("textmill")

_BACKLOG = 2048
# Longer than the minute after which usual proxies give up an idle connection by themselves: whoever
# closes first must not be the one to whom a request may be on its way.
_KEEP_ALIVE_SECONDS = 75
# An open connection on which nothing comes for so long, while draining, holds no request.
_QUIET_SECONDS = 0.5
_NOTICE_SECONDS = 0.5


def serve(
    source: ModelSource, settings: ServeSettings, token: str | None, announce: Callable[[str], None] = lambda _: None
) -> None:
    """Serve until SIGTERM or SIGINT; requests accepted before are answered.

    Args:
        source: Where the model comes from.
        settings: How to serve it.
        token: That every request must bring, if any.
        announce: Called with the server's address once it listens.

    Raises:
        UserError: The address is open to a network without a token or in use, or the first model
            cannot be loaded.
    """
    require_token(settings.host, token)
    # Batches are small and several at once: threads within one would only take turns with the workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    metrics = ServingMetrics()

    def load(version: str) -> LoadedModel:
        return load_model(source.fetch(version), settings.precision, settings.batch_tokens)

    watcher = Watcher(source, load, metrics, settings.poll_seconds)
    service = Service(settings, watcher, metrics)
    listening = listen(settings.host, settings.port)
    config = uvicorn.Config(
        build_application(service, token),
        http=partial(BoundedHead, head_seconds=settings.receive_seconds),  # type: ignore[arg-type]
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    server = DrainingServer(config, service.traffic, settings.drain_seconds)
    failures: list[BaseException] = []

    def stop(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    log.info("serve: listening on %s", address(listening))
    announce(address(listening))
    watcher.start(stop)
    server.run(sockets=[listening])
    watcher.stop()
    if failures:
        raise failures[0]
    if service.traffic.cut_off:
        log.warning("serve: stopped; %d request(s) took longer than --drain-seconds", service.traffic.cut_off)
    else:
        log.info("serve: stopped; every accepted request was answered")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: The address is not this machine's, or in use.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(_BACKLOG)
    except OSError as error:
        fix = "Choose another with --host or --port"
        raise UserError(f"cannot listen ({error.strerror})", where=f"{host}:{port}", fix=fix) from error
    return listening


def address(listening: socket.socket) -> str:
    """The base URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class DrainingServer(uvicorn.Server):
    """Uvicorn, which by itself closes idle connections and the queue of new ones at once at the end.

    A request may be on its way in both. So first every client is asked to leave
    (`Connection: close`, `/ready` gives 503), then no new connection is accepted but those that
    wait already, and connections are closed only when nothing has come on them for a while.
    """

    def __init__(self, config: uvicorn.Config, traffic: Traffic, drain_seconds: float) -> None:
        super().__init__(config)
        self.traffic = traffic
        self.drain_seconds = drain_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As Uvicorn, but a signal that has been obeyed does not kill the process afterwards."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then let Uvicorn wait for what is in progress and cancel what is not done in time."""
        end = time.monotonic() + self.drain_seconds
        self.traffic.draining = True
        log.info("serve: stopping; %d requests in progress", self.traffic.in_progress)
        if self.server_state.connections:
            await asyncio.sleep(_NOTICE_SECONDS)
        await self._stop_listening(sockets or [])
        began = time.monotonic()
        while self.server_state.connections and not self.force_exit:
            quiet = time.monotonic() - max(began, self.traffic.last_arrival)
            if quiet > _QUIET_SECONDS or time.monotonic() > end:
                break
            await asyncio.sleep(0.02)
        self.config.timeout_graceful_shutdown = max(0, math.ceil(end - time.monotonic()))
        await super().shutdown(sockets)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Accept the connections that the kernel has made already, and no more."""
        waiting = []
        for listening in sockets:
            listening.setblocking(False)
            while True:
                try:
                    waiting.append(listening.accept()[0])
                except BlockingIOError:
                    break
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
