"""Limits of a request: the size of its body, the number and length of its inputs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from textmill.serving.settings import ServeSettings

RETRY_AFTER_SECONDS = 1
_JSON = "application/json"
_FEEDBACK = ("request", "position", "answer")
_MESSAGE_CHARACTERS = 300
# Bytes of a too large body that are still read: otherwise a client that is sending gets a broken connection and
# does not see the error.
_LINGER_BYTES = 16 << 20


class RequestError(Exception):
    """A request that is answered with an error status and one line."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.message = " ".join(message.split())[:_MESSAGE_CHARACTERS]
        self.headers = dict(headers or {})
        super().__init__(self.message)

    def response(self) -> Response:
        """Return the HTTP response."""
        from starlette.responses import JSONResponse

        return JSONResponse({"error": self.message}, self.status, self.headers)


def unavailable(message: str) -> RequestError:
    """Return a 503 that asks the client to retry."""
    return RequestError(503, message, {"Retry-After": str(RETRY_AFTER_SECONDS)})


@dataclass(frozen=True)
class ParsedRequest:
    """The inputs of a request; `single` if it sent `input`, not `inputs`."""

    values: list[Any]
    single: bool
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Feedback:
    """The right answer to an input of an earlier request."""

    request: str
    position: int
    answer: Any


class BodyMemory:
    """Limits the memory of all request bodies together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def reserve(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes for one body; release them on exit.

        Raises:
            RequestError: 503 if the bodies of all requests exceed the limit.
        """
        reserved = 0

        def add(size: int) -> None:
            nonlocal reserved
            if self.used + size > self.limit:
                raise unavailable("too many concurrent requests; try again")
            self.used += size
            reserved += size

        try:
            yield add
        finally:
            self.used -= reserved


def _require_json(request: Request) -> None:
    """Refuse the types that a web page may send to another site without asking it: a form, plain text, none."""
    types = request.headers.getlist("content-type")
    if len(types) != 1 or types[0].partition(";")[0].strip().lower() != _JSON:
        raise RequestError(415, f"send the body with the header Content-Type: {_JSON}")


async def read_body(request: Request, reserve: Callable[[int], None], settings: ServeSettings) -> bytes:
    """Read the whole body.

    Raises:
        RequestError: 413 if it is too large, 408 if it is not received in time, 400 if it is incomplete, 415 if
            its header does not say that it is JSON.
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
                    reserve(len(chunk))
                    chunks.append(chunk)
                elif size > limit + _LINGER_BYTES:
                    break
                else:
                    chunks.clear()
    except TimeoutError:
        message = f"the body did not arrive in {settings.receive_seconds:g} s"
        raise RequestError(408, message, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise RequestError(400, "the body is incomplete") from None
    if size > limit:
        raise RequestError(413, f"the body is larger than {limit} bytes", {"Connection": "close"})
    _require_json(request)
    return b"".join(chunks)


def parse_request(body: bytes, settings: ServeSettings, *, options: bool = False) -> ParsedRequest:
    """Parse a body: `{"inputs": [...]}` or `{"input": ...}`, with `options` where allowed.

    Raises:
        RequestError: 400 if it is not JSON, 422 for another form or an input that is too long.
    """
    content = parse_json(body)
    allowed = {"input", "inputs", "options", "stream"} if options else {"input", "inputs"}
    if not isinstance(content, dict) or ("input" in content) == ("inputs" in content):
        raise RequestError(422, 'send {"inputs": [...]} or {"input": ...}')
    if unknown := content.keys() - allowed:
        raise RequestError(422, f"unknown key {sorted(unknown)[0]!r}; use {', '.join(sorted(allowed))}")
    single = "input" in content
    values = [content["input"]] if single else content["inputs"]
    if not isinstance(values, list) or not values:
        raise RequestError(422, "inputs must be a list of at least one input")
    if len(values) > settings.max_inputs:
        raise RequestError(422, f"{len(values)} inputs, more than {settings.max_inputs}")
    for position, value in enumerate(values, start=1):
        if (length := characters(value)) > settings.max_characters:
            raise RequestError(422, f"input {position} has {length} characters, more than {settings.max_characters}")
    rest = {name: content[name] for name in ("options", "stream") if name in content}
    return ParsedRequest(values, single, rest)


def parse_feedback(body: bytes, settings: ServeSettings) -> Feedback:
    """Parse a body: `{"request": ID, "answer": ...}`, with `position` (from 0) among several inputs.

    Raises:
        RequestError: 400 if it is not JSON, 422 for another form or an answer that is too long.
    """
    content = parse_json(body)
    form = 'send {"request": ID, "answer": ...}, and "position" (from 0) of several inputs'
    if not isinstance(content, dict) or not {"request", "answer"} <= content.keys() <= {*_FEEDBACK}:
        raise RequestError(422, form)
    request, position, answer = content["request"], content.get("position", 0), content["answer"]
    if not isinstance(request, str) or type(position) is not int or position < 0:
        raise RequestError(422, form)
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        raise RequestError(422, "the answer is empty")
    if (length := characters(answer)) > settings.max_characters:
        raise RequestError(422, f"the answer has {length} characters, more than {settings.max_characters}")
    return Feedback(request, position, answer)


def parse_json(body: bytes) -> Any:
    """Parse a body as JSON without repeated keys.

    Raises:
        RequestError: 400 if it is not JSON, 422 if a key is repeated.
    """
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(400, f"the body is not JSON: {error}") from None
    json.loads(body, object_pairs_hook=_unique)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, which has each key once; most readers take the last of equal ones in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        raise RequestError(422, f"the key {twice[:40]!r} is given twice")
    return found


def characters(value: Any) -> int:
    """Return the number of characters of all texts in an input, field names included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(name)) + characters(inner) for name, inner in value.items())
    if isinstance(value, Sequence):
        return sum(map(characters, value))
    return len(str(value))
