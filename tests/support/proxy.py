"""A TCP proxy before a real server that can pass, hang, or refuse, as a network does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Pass bytes to a server.

    Attributes:
        mode: `pass`; `hang` takes connections and bytes and answers nothing; `refuse` closes the port;
            `lose answers` passes requests and closes the connection before the answer comes back.
        requests: Number of connections that were passed.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self.mode = "pass"
        self.requests = 0
        self._listener: socket.socket | None = self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._closed = False
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: str) -> None:
        """Change the mode, also of connections that are open."""
        self.mode = mode
        if mode == "refuse" and self._listener is not None:
            listener, self._listener = self._listener, None
            listener.close()
            self._cut()
        elif mode != "refuse" and self._listener is None:
            self._listener = self._listen(self.port)
        if mode in ("pass", "lose answers"):
            self._cut()  # those that hung would hang on

    def close(self) -> None:
        self._closed = True
        self.set("refuse")

    def _cut(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._open = []

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        listener.settimeout(0.1)
        return listener

    def _accept(self) -> None:
        while not self._closed:
            listener = self._listener
            if listener is None:
                time.sleep(0.05)
                continue
            try:
                client, _ = listener.accept()
            except OSError:
                continue
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            server = socket.create_connection(self._target, 30)
            self._open.append(server)
            self.requests += 1
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()
            self._pump(client, server, False)

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self.mode == "hang":
                    time.sleep(0.05)
                if self.mode == "lose answers" and answers:
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy before the server at `target`."""
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()
