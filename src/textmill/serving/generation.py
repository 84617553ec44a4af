"""`/generate`: what a predictor must offer for it, and how its tokens stream to the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

from pydantic_core import to_json

from textmill.errors import UserError
from textmill.serving.limits import Refused, busy

log = logging.getLogger("textmill")

_END = object()


@runtime_checkable
class Generator(Protocol):
    """A predictor that writes text. A server whose model is one has `/generate`."""

    def generate(self, value: Any, options: Mapping[str, Any]) -> Iterator[str]:
        """Pieces of the text that continues or answers `value`, as they are made.

        Called from a thread of the server's, for several inputs at the same time. When the client
        goes away, the iterator is closed, so a generator function may release what it holds in
        `finally`.

        Args:
            value: A natural input, as for `predict`.
            options: What the client sent as `options`: lengths, temperature and the like.

        Raises:
            UserError: The input or an option is wrong; raised before the first piece.
        """


class Generations:
    """Runs generations in threads of its own, a limited number at the same time."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix="generate")

    async def start(self, generator: Generator, value: Any, options: Mapping[str, Any]) -> AsyncIterator[str]:
        """The pieces, once the first has been made, so that a wrong input is told by a status.

        Raises:
            Refused: 503 when too many texts are being generated, 422 for a wrong input or option.
        """
        if not self._free:
            raise busy("too many texts are being generated; try again")
        self._free -= 1
        pieces = self._pieces(generator, value, options)
        try:
            first = await anext(pieces, None)
        except UserError as error:
            raise Refused(422, str(error)) from error
        return _after(first, pieces)

    async def _pieces(self, generator: Generator, value: Any, options: Mapping[str, Any]) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        running: Iterator[str] | None = None
        step: asyncio.Future[Any] | None = None
        try:
            step = loop.run_in_executor(self._pool, generator.generate, value, options)
            iterator: Iterator[str] = await asyncio.shield(step)
            running = iterator
            while True:
                step = loop.run_in_executor(self._pool, _next, iterator)
                piece = await asyncio.shield(step)
                if piece is _END:
                    return
                yield piece
        finally:
            # A generator cannot be closed while it works on a piece that nobody waits for any more.
            if step is None or step.done():
                self._end(running)
            else:
                step.add_done_callback(lambda _: self._end(running))

    def _end(self, running: Iterator[str] | None) -> None:
        self._free += 1
        close = getattr(running, "close", None)
        if close is not None:
            self._pool.submit(close)

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _next(running: Iterator[str]) -> Any:
    return next(running, _END)


async def _after(first: str | None, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        if first is not None:
            yield first
        async for piece in pieces:
            yield piece
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


async def events(pieces: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """Server-sent events: a `token` for each piece, then `end` with the whole text, or `error`."""
    text: list[str] = []
    try:
        async for piece in pieces:
            text.append(piece)
            yield _event("token", piece)
        yield _event("end", "".join(text))
    except Exception:
        log.exception("serve: a generation failed")
        yield _event("error", "the generation failed")
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


def _event(name: str, data: str) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), to_json(data))
