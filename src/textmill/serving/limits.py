"""What a request may be: the size of its body, the number and length of its inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from textmill.serving.settings import ServeSettings

RETRY_AFTER_SECONDS = 1
_MESSAGE_CHARACTERS = 300
# Of a body that is refused, so much is still read: a client that is still sending would otherwise
# see its connection break and never read why.
_LINGER_BYTES = 16 << 20


class Refused(Exception):  # noqa: N818 - a refusal is an answer here, not a fault
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.message = " ".join(message.split())[:_MESSAGE_CHARACTERS]
        self.headers = dict(headers or {})
        super().__init__(self.message)

    def response(self) -> Response:
        """What the client gets."""
        from starlette.responses import JSONResponse

        return JSONResponse({"error": self.message}, self.status, self.headers)


def busy(message: str) -> Refused:
    """A deliberate 503: come back in a moment."""
    return Refused(503, message, {"Retry-After": str(RETRY_AFTER_SECONDS)})


@dataclass(frozen=True)
class Question:
    """The inputs of a request; `single` says that `input` was sent, not `inputs`."""

    values: list[Any]
    single: bool
    options: dict[str, Any] = field(default_factory=dict)


class HeldBytes:
    """Counts the bodies that are in memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    @contextmanager
    def room(self) -> Iterator[_Share]:
        """Take room for one body; it is given back at the end.

        Raises:
            Refused: 503, when the bodies of all requests take too much.
        """
        share = _Share(self)
        try:
            yield share
        finally:
            self.held -= share.size


class _Share:
    def __init__(self, total: HeldBytes) -> None:
        self.total = total
        self.size = 0

    def add(self, size: int) -> None:
        if self.total.held + size > self.total.limit:
            raise busy("too many requests at once; try again")
        self.total.held += size
        self.size += size


async def read_body(request: Request, share: _Share, settings: ServeSettings) -> bytes:
    """The whole body.

    Raises:
        Refused: 413 when it is too large, 408 when it comes too slowly, 400 when it does not come.
    """
    from starlette.requests import ClientDisconnect

    limit = settings.max_body_bytes
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.receive_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    share.add(len(chunk))
                    chunks.append(chunk)
                elif size > limit + _LINGER_BYTES:
                    break
                else:
                    chunks.clear()
    except TimeoutError:
        message = f"the body did not arrive in {settings.receive_seconds:g} s"
        raise Refused(408, message, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise Refused(400, "the body is incomplete") from None
    if size > limit:
        raise Refused(413, f"the body is larger than {limit} bytes", {"Connection": "close"})
    return b"".join(chunks)


def parse_question(body: bytes, settings: ServeSettings, *, options: bool = False) -> Question:
    """The inputs of a body: `{"inputs": [...]}` or `{"input": ...}`, beside `options` where allowed.

    Raises:
        Refused: 400 for what is no JSON, 422 for another form or an input that is too long.
    """
    try:
        asked = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    allowed = {"input", "inputs", "options", "stream"} if options else {"input", "inputs"}
    if not isinstance(asked, dict) or ("input" in asked) == ("inputs" in asked):
        raise Refused(422, 'send {"inputs": [...]} or {"input": ...}')
    if unknown := asked.keys() - allowed:
        raise Refused(422, f"unknown key {sorted(unknown)[0]!r}; there are {', '.join(sorted(allowed))}")
    single = "input" in asked
    values = [asked["input"]] if single else asked["inputs"]
    if not isinstance(values, list) or not values:
        raise Refused(422, "inputs must be a list of at least one input")
    if len(values) > settings.max_inputs:
        raise Refused(422, f"{len(values)} inputs; at most {settings.max_inputs} fit into a request")
    for position, value in enumerate(values, start=1):
        if (found := characters(value)) > settings.max_characters:
            raise Refused(422, f"input {position} has {found} characters, more than {settings.max_characters}")
    rest = {name: asked[name] for name in ("options", "stream") if name in asked}
    return Question(values, single, rest)


def characters(value: Any) -> int:
    """Characters of all texts in an input, names of fields counted."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(name)) + characters(inner) for name, inner in value.items())
    if isinstance(value, Sequence):
        return sum(map(characters, value))
    return len(str(value))
