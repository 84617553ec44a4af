"""Limits on the head of a request: its size and the time to receive it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A usual limit of servers; a bearer token and the headers of proxies are much smaller.
_MAX_HEAD_BYTES = 64 << 10
_LINGER_SECONDS = 1.0


class BoundedHead(HttpToolsProtocol):
    """Uvicorn's protocol with limits; Uvicorn alone waits without end for a head and stores all of it.

    `head_seconds` run from the connection, or from the first byte of a later request, to the end of the head.
    """

    def __init__(self, *, head_seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._head_seconds = head_seconds
        self._received_bytes = 0  # since the head began, as far as it is not complete
        self._head_bytes = 0  # of the parts that are parsed
        self._head_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head; bytes after it in the same chunk are already processed."""
        if self._refused:
            return
        super().data_received(data)
        if self._head_timer is not None:
            self._received_bytes += len(data)
            if self._received_bytes > _MAX_HEAD_BYTES:
                self._refuse_head()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is not HTTP, or a head that became too large within one chunk."""
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP request")

    def on_message_begin(self) -> None:
        """Start the timer for another request on the same connection."""
        super().on_message_begin()
        self._head_bytes = len(b"  HTTP/1.1\r\n\r\n")  # with the method and the address, counted below
        if self._head_timer is None:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header."""
        self._count(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        """Stop the parser, which calls `send_400_response`, at a head that is too large."""
        self._head_bytes += size
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise ValueError("the head is too large")

    def on_headers_complete(self) -> None:
        """Stop the timer; the application limits the body."""
        self._count(len(self.parser.get_method()))
        self._stop_timer()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._received_bytes = 0
        self._head_timer = self.loop.call_later(self._head_seconds, self._too_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_head()  # a pipelined request: the answer before it may still take time
            return
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the head did not arrive in {self._head_seconds:g} s")

    def _refuse_head(self) -> None:
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head is over {_MAX_HEAD_BYTES} bytes")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._stop_timer()
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self.cycle is None or self.cycle.response_complete:  # do not write into another answer
            body = to_json({"error": message})
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + body)
            # To close with unread bytes would reset the connection, and a client that is sending would lose the
            # answer.
            self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()
