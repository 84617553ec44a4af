"""A small asyncio HTTP client, so that a test sees exactly which requests were answered, refused or lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any


class LostError(Exception):
    """The connection was made, but no whole answer came."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


class _Reading(asyncio.Protocol):
    """Gathers one answer at a time; cheaper than asyncio's streams, whose work a server beside it would lack."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if not end or self.answer is None:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(rest) >= length and not self.answer.done():
            del self.received[: len(head) + len(end) + length]
            self.answer.set_result((bytes(head), bytes(rest[:length])))

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(LostError(repr(error or "closed")))


class Connection:
    """One connection, kept alive for as long as the server wants; a new one is made when needed.

    Raises (from `request`):
        ConnectionRefusedError: Nobody listens.
        LostError: The connection ended without a whole answer.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.reading: _Reading | None = None

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        if self.reading is None:
            try:
                _, self.reading = await loop.create_connection(_Reading, "127.0.0.1", self.port)
            except ConnectionResetError as error:  # by the kernel, as nobody listens any more: nothing was sent
                raise ConnectionRefusedError(*error.args) from error
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.reading.answer = loop.create_future()
        if self.reading.transport.is_closing():
            self.close()
            raise LostError("closed")
        self.reading.transport.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        try:
            head, content = await self.reading.answer
        except LostError:
            self.close()
            raise
        first, *rest = head.decode("latin-1").split("\r\n")
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if found.get("connection") == "close":
            self.close()
        return Answer(int(first.split()[1]), found, content, time.perf_counter() - started)

    async def post(self, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Answer:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return await self.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})

    def close(self) -> None:
        if self.reading is not None:
            self.reading.transport.close()
        self.reading = None


def ask(port: int, method: str, path: str, value: Any = b"", headers: Mapping[str, str] | None = None) -> Answer:
    """One request on a connection of its own."""

    async def once() -> Answer:
        connection = Connection(port)
        try:
            if method == "POST":
                return await connection.post(path, value, headers)
            return await connection.request(method, path, headers=headers)
        finally:
            connection.close()

    return asyncio.run(asyncio.wait_for(once(), 60))


async def load(seconds: float, clients: int, one: Callable[[int], Callable[[], Awaitable[None]]]) -> None:
    """Let `clients` ask at the same time, each again and again, until the time is over.

    Args:
        seconds: How long requests are begun.
        clients: How many ask.
        one: For a client's number, a function that makes one request.
    """
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        request = one(number)
        while time.monotonic() < end:
            await request()

    await asyncio.gather(*(client(number) for number in range(clients)))
