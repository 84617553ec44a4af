"""The head of a request, which must come in time and be no larger than heads are."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# As usual servers have it; a bearer token and what proxies add are a small part of it.
_LARGEST_HEAD = 64 << 10


class BoundedHead(HttpToolsProtocol):
    """Uvicorn's protocol, which by itself waits for the head of a request for ever and keeps all of it.

    Args:
        head_seconds: How long a client may take from connecting, or from the first byte of a later
            request, to the end of the head.
        options: As `HttpToolsProtocol` wants them.
    """

    def __init__(self, *, head_seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._head_seconds = head_seconds
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A head is due."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """None is due any more."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes of a head; what follows it in the same piece was read already."""
        super().data_received(data)
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _LARGEST_HEAD:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head is over {_LARGEST_HEAD} bytes")

    def on_message_begin(self) -> None:
        """Another request on the same connection."""
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The application takes over; it has limits of its own for the body."""
        self._head_came()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._head_seconds, self._too_late)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_head()  # of a request sent ahead: the answer before it may take its time
            return
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the head did not arrive in {self._head_seconds:g} s")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._head_came()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # else it would stand within another answer
            body = to_json({"error": message})
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode("ascii") + body)
        self.transport.close()
