"""Streaming of generated text (`/generate`), and what a predictor needs for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic_core import to_json

from textmill.config.sections.generation import GenerationConfig
from textmill.errors import UserError
from textmill.serving.limits import RequestError, unavailable

if TYPE_CHECKING:
    from textmill.serving.settings import ServeSettings

log = logging.getLogger("textmill")

_END = object()
_MAX_BEAMS = 16
_MAX_THREADS = 64
_FEW = 2  # of a predictor that names no number


@runtime_checkable
class StreamingGenerator(Protocol):
    """A predictor that continues prompts, such as `TextContinuer`. Its server has `/generate`."""

    options: GenerationConfig
    """Default generation options."""

    def stream(self, value: Any, options: GenerationConfig) -> Iterator[str]:
        """Yield pieces of the text that continues `value`, as they are generated.

        The server calls it from several threads. When a client disconnects, the iterator is closed, so a
        generator function can release resources in `finally`.

        Raises:
            UserError: The input is invalid; raised before the first piece.
        """


def concurrent(generator: object) -> int:
    """Return how many generations to run at a time, unless the server's settings say otherwise."""
    return int(getattr(generator, "concurrent", _FEW))


class GenerationPool:
    """Runs a limited number of concurrent generations in its own threads."""

    def __init__(self, settings: ServeSettings) -> None:
        self._running = 0
        self._limit = settings.max_generations
        self._max_tokens = settings.max_new_tokens
        self._pool = ThreadPoolExecutor(settings.max_generations or _MAX_THREADS, thread_name_prefix="generate")

    async def start(self, generator: StreamingGenerator, value: Any, changes: Mapping[str, Any]) -> AsyncIterator[str]:
        """Return the pieces once the first exists, so that an invalid input gets an error status.

        `changes` are the client's changes to `generator.options`.

        Raises:
            RequestError: 503 if too many generations run, 422 for an invalid input or option.
        """
        options = self._options(generator, changes)
        if self._running >= (self._limit or concurrent(generator)):
            raise unavailable("too many generations are running; try again")
        self._running += 1
        pieces = self._pieces(generator, value, options)
        try:
            first = await anext(pieces, None)
        except UserError as error:
            raise RequestError(422, str(error)) from error
        return _after(first, pieces)

    def _options(self, generator: StreamingGenerator, changes: Mapping[str, Any]) -> GenerationConfig:
        """Return the options of a request; limits never go below the model's own options."""
        try:
            options = generator.options.changed(changes)
        except UserError as error:
            raise RequestError(422, str(error)) from error
        for name, limit in (("max_new_tokens", self._max_tokens), ("beams", _MAX_BEAMS)):
            if getattr(options, name) > max(limit, getattr(generator.options, name)):
                raise RequestError(422, f"{name}: {getattr(options, name)} is more than {limit}")
        return options

    async def _pieces(self, generator: StreamingGenerator, value: Any, options: GenerationConfig) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        running: Iterator[str] | None = None
        step: asyncio.Future[Any] | None = None
        try:
            step = loop.run_in_executor(self._pool, generator.stream, value, options)
            iterator: Iterator[str] = await asyncio.shield(step)
            running = iterator
            while True:
                step = loop.run_in_executor(self._pool, next, iterator, _END)
                piece = await asyncio.shield(step)
                if piece is _END:
                    return
                yield piece
        finally:
            # A generator cannot be closed while it computes a piece, even if its client has disconnected.
            if step is None or step.done():
                self._end(running)
            else:
                step.add_done_callback(lambda _: self._end(running))

    def _end(self, running: Iterator[str] | None) -> None:
        self._running -= 1
        close = getattr(running, "close", None)
        if close is not None:
            self._pool.submit(close)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _after(first: str | None, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        if first is not None:
            yield first
        async for piece in pieces:
            yield piece
    finally:
        await pieces.aclose()  # type: ignore[attr-defined]


async def server_sent_events(pieces: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """Yield server-sent events: a `token` for each piece, then `end` with the whole text, or `error`."""
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
