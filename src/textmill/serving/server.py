"""The server process: socket, signals, and a shutdown that drops no accepted request."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from textmill.errors import UserError
from textmill.serving.access import require_token
from textmill.serving.application import Service, build_application
from textmill.serving.loading import LoadedModel, ModelSource, load_model
from textmill.serving.metrics import ServingMetrics
from textmill.serving.protocol import BoundedHead
from textmill.serving.settings import ServeSettings
from textmill.serving.traffic import Traffic
from textmill.serving.trial import Trials
from textmill.serving.watcher import Watcher

log = logging.getLogger("textmill")

_BACKLOG = 2048
# Must exceed the 60 s idle timeout of common proxies; otherwise the server may close a connection while a
# request is in flight.
_KEEP_ALIVE_SECONDS = 75
# While draining, a connection without data for this time has no request in flight.
_QUIET_SECONDS = 0.5
_NOTICE_SECONDS = 0.5


def serve(
    source: ModelSource,
    settings: ServeSettings,
    token: str | None,
    announce: Callable[[str], None] = lambda _: None,
    trials: Trials | None = None,
    beside: ModelSource | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, and answer the requests accepted before.

    `announce` is called with the server's address once it listens. `beside` is a further model, served by its name.

    Raises:
        UserError: The address is in use or open to a network without a token, or the first model cannot be
            loaded.
    """
    require_token(settings.host, token)
    # Batches are small and concurrent: threads within a batch would compete with the workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    metrics = ServingMetrics()

    loading = threading.Lock()  # transformers cannot be imported by two threads at once

    def watch(source: ModelSource) -> Watcher:
        def load(version: str) -> LoadedModel:
            fetched = source.fetch(version)
            with loading:
                return load_model(fetched, settings.precision, settings.batch_tokens, settings.engine, settings.workers)

        return Watcher(source, load, metrics, settings.poll_seconds)

    watchers = [watch(each) for each in (source, beside) if each is not None]
    service = Service(settings, watchers[0], metrics, trials, *watchers[1:])
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
    for watcher in watchers:
        watcher.start(stop)
    server.run(sockets=[listening])
    stopped = [watcher.stop() for watcher in watchers]
    if failures:
        for watcher in watchers:  # the interpreter must not end while a thread loads
            watcher.stop(None)
        raise failures[0]
    if service.traffic.cut_off:
        log.warning("serve: stopped; %d request(s) exceeded --drain-seconds", service.traffic.cut_off)
    else:
        log.info("serve: stopped; all accepted requests were answered")
    if service.traffic.cut_off or not all(stopped) or (trials and trials.hangs):
        end_process(0)


def end_process(status: int) -> NoReturn:
    """End the process at once, although threads still load a model or compute an answer.

    The interpreter's shutdown waits for some of them. It ends the others when they come back from native code, to
    which libtorch and ONNX Runtime answer with "terminate called" and SIGABRT.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        UserError: The address does not belong to this machine, or is in use.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(_BACKLOG)
    except OSError as error:
        fix = "Use another --host or --port"
        raise UserError(f"cannot listen ({error.strerror})", where=f"{host}:{port}", fix=fix) from error
    return listening


def address(listening: socket.socket) -> str:
    """Return the base URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class DrainingServer(uvicorn.Server):
    """Uvicorn with a shutdown that drops no request in flight.

    Uvicorn closes idle connections and the queue of new ones at once, and a request may be on its way in both.
    This server first asks clients to close (`Connection: close`, `/ready` gives 503). Then it accepts only
    connections that already wait, and closes connections without data for a while.
    """

    def __init__(self, config: uvicorn.Config, traffic: Traffic, drain_seconds: float) -> None:
        super().__init__(config)
        self.traffic = traffic
        self.drain_seconds = drain_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do the same as Uvicorn, but do not raise a handled signal again afterwards.

        A signal that the parent ignores stays ignored: Ctrl-C is not meant for a server in the background.
        """
        ignored = [number for number in HANDLED_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
        with super().capture_signals():
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            yield
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then let Uvicorn wait for requests in progress and cancel those that exceed the time."""
        end = time.monotonic() + self.drain_seconds
        self.traffic.draining = True
        log.info("serve: stopping; %d requests in progress", self.traffic.in_progress)
        if self.server_state.connections:
            await asyncio.sleep(_NOTICE_SECONDS)
        await self._stop_listening(sockets or [])
        started = time.monotonic()
        while self.server_state.connections and not self.force_exit:
            quiet = time.monotonic() - max(started, self.traffic.last_arrival)
            if quiet > _QUIET_SECONDS or time.monotonic() > end:
                break
            await asyncio.sleep(0.02)
        self.config.timeout_graceful_shutdown = max(0, math.ceil(end - time.monotonic()))
        await super().shutdown(sockets)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Accept the connections in the kernel's queue, and no more."""
        accepted = []
        for listening in sockets:
            listening.setblocking(False)
            while True:
                try:
                    accepted.append(listening.accept()[0])
                except BlockingIOError:
                    break
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in accepted:
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
