"""`/generate`: what a predictor must offer for it, and how its tokens stream to the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic_core import to_json

from textmill.config.sections.generation import GenerationConfig
from textmill.errors import UserError
from textmill.serving.limits import Refused, busy

if TYPE_CHECKING:
    from textmill.serving.settings import ServeSettings

log = logging.getLogger("textmill")

_END = object()
_MOST_BEAMS = 16


@runtime_checkable
class StreamingGenerator(Protocol):
    """A predictor that continues prompts, such as `TextContinuer`. Its server has `/generate`."""

    options: GenerationConfig
    """How it writes unless it is asked otherwise."""

    def stream(self, value: Any, options: GenerationConfig) -> Iterator[str]:
        """Pieces of the text that goes on from `value`, as they are made.

        Called from threads of the server's, for several inputs at the same time. When the client
        goes away, the iterator is closed, so a generator function may release what it holds in
        `finally`.

        Args:
            value: A natural input, as for `predict`.
            options: How to write.

        Raises:
            UserError: The input is wrong; raised before the first piece.
        """


class Generations:
    """Runs generations in threads of its own, a limited number at the same time.

    Args:
        settings: How many, and how long a text may become.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._free = settings.max_generations
        self._most_tokens = settings.max_new_tokens
        self._pool = ThreadPoolExecutor(settings.max_generations, thread_name_prefix="generate")

    async def start(self, generator: StreamingGenerator, value: Any, changes: Mapping[str, Any]) -> AsyncIterator[str]:
        """The pieces, once the first has been made, so that a wrong input is told by a status.

        Args:
            generator: Of the served model.
            value: The input.
            changes: What the client wants otherwise than `generator.options` have it.

        Raises:
            Refused: 503 when too many texts are being generated, 422 for a wrong input or option.
        """
        options = self._options(generator, changes)
        if not self._free:
            raise busy("too many texts are being generated; try again")
        self._free -= 1
        pieces = self._pieces(generator, value, options)
        try:
            first = await anext(pieces, None)
        except UserError as error:
            raise Refused(422, str(error)) from error
        return _after(first, pieces)

    def _options(self, generator: StreamingGenerator, changes: Mapping[str, Any]) -> GenerationConfig:
        """The options of a request; what the model itself is set to is never too much."""
        try:
            options = generator.options.changed(changes)
        except UserError as error:
            raise Refused(422, str(error)) from error
        for name, most in (("max_new_tokens", self._most_tokens), ("beams", _MOST_BEAMS)):
            if getattr(options, name) > max(most, getattr(generator.options, name)):
                raise Refused(422, f"{name}: {getattr(options, name)} is more than {most}")
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
