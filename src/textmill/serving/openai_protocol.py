"""The protocol of OpenAI's HTTP interface: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`.

Limits, token, queue and champion are those of the other endpoints.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import struct
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from textmill.config.sections.generation import GenerationConfig
from textmill.errors import UserError
from textmill.predicting.json_grammar import json_grammar
from textmill.serving.limits import RequestError, characters, parse_json, read_body
from textmill.serving.streaming import StreamingGenerator, concurrent

if TYPE_CHECKING:
    from textmill.predicting.text_continuer import Piece, TokenScore
    from textmill.serving.batching import MicroBatcher
    from textmill.serving.limits import BodyMemory
    from textmill.serving.loading import Identity, LoadedModel
    from textmill.serving.settings import ServeSettings
    from textmill.serving.streaming import GenerationPool

log = logging.getLogger("textmill")

_CHAT_STATE = "chat_template"
_Parsed = TypeVar("_Parsed", bound=BaseModel)
_ZERO = Annotated[float, Field(ge=0, le=0)]
_DONE = b"data: [DONE]\n\n"


class Shared(Protocol):
    """What these endpoints share with the others: the current model, the queue, the limits."""

    settings: ServeSettings
    batcher: MicroBatcher
    generations: GenerationPool
    bodies: BodyMemory

    def models(self) -> list[LoadedModel]:
        """Return the current models; raise a 503 `RequestError` while one is not loaded."""

    def model(self, name: str | None = None) -> LoadedModel:
        """Return the current model, or the one of a name; raise a 404 `RequestError` for another name."""


@runtime_checkable
class TokenGenerator(StreamingGenerator, Protocol):
    """A predictor that continues tokens and scores them, such as `TextContinuer`."""

    exported: Any

    def encode_prompt(self, prompt: Any, *, plain: bool = False) -> list[int]:
        """Return the tokens of a natural input, or with `plain` those of a text as it is."""

    def pieces(
        self, prompt: list[int], options: GenerationConfig, likeliest: int | None = None, grammar: str | None = None
    ) -> Iterator[Piece]:
        """Yield the continuation of tokens in pieces; with `likeliest`, also scores; it follows `grammar`."""


class _StreamOptions(BaseModel):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Body(BaseModel):
    """Parameters that both kinds of completions have; unknown ones are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    n: Literal[1] | None = 1
    frequency_penalty: _ZERO | None = 0
    presence_penalty: _ZERO | None = 0
    user: str | None = None

    def changes(self) -> dict[str, Any]:
        """Return the client's changes to the generation options."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        changes = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.stop is not None:
            changes["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.max_tokens is not None:
            changes["max_new_tokens"] = self.max_tokens
        return changes


class _TextFormat(BaseModel):
    type: Literal["text"]


class _JsonSchema(BaseModel):
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    description: str | None = None


class _SchemaFormat(BaseModel):
    type: Literal["json_schema"]
    json_schema: _JsonSchema


class _ObjectFormat(BaseModel):
    type: Literal["json_object"]


class _ChatBody(_Body):
    messages: list[dict[str, Any]]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[_TextFormat | _ObjectFormat | _SchemaFormat, Field(discriminator="type")] | None = None

    def changes(self) -> dict[str, Any]:
        """Return the client's changes to the generation options."""
        longest = {} if self.max_completion_tokens is None else {"max_new_tokens": self.max_completion_tokens}
        return super().changes() | longest

    def grammar(self) -> str | None:
        """Return the grammar of the answer, None for any text."""
        wanted = self.response_format
        if wanted is None or isinstance(wanted, _TextFormat):
            return None
        return json_grammar(wanted.json_schema.schema_ if isinstance(wanted, _SchemaFormat) else {"type": "object"})


class _CompletionBody(_Body):
    prompt: str | list[str] | list[int]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1


class _EmbeddingBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class _Job:
    """One generation, in the form that `GenerationPool` runs; knows the prompt's tokens once it has started."""

    def __init__(
        self, generator: TokenGenerator, likeliest: int | None, grammar: str | None = None, *, plain: bool
    ) -> None:
        self.options = generator.options
        self.concurrent = concurrent(generator)
        self._grammar = grammar
        self.prompt_tokens = 0
        self._generator = generator
        self._likeliest = likeliest
        self._plain = plain

    def stream(self, value: Any, options: GenerationConfig) -> Iterator[Any]:
        """Yield the pieces; see `TokenGenerator.pieces`."""
        ids = value if isinstance(value, list) else self._generator.encode_prompt(value, plain=self._plain)
        self.prompt_tokens = len(ids)
        yield from self._generator.pieces(ids, options, self._likeliest, self._grammar)


class _Answer:
    """Writes the pieces of one generation in the form of chats or of plain completions."""

    def __init__(self, model: str, *, chat: bool, scored: bool) -> None:
        self._chat = chat
        self._scored = scored
        self._offset = 0
        kind = "chat.completion" if chat else "text_completion"
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}

    def whole(self, pieces: list[Piece], prompt_tokens: int) -> dict[str, Any]:
        """Return the answer to a request that does not stream."""
        text = "".join(piece.text for piece in pieces)
        choice = self._choice([score for piece in pieces for score in piece.scores], pieces[-1].finish)
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return self._head | {"choices": [choice], "usage": _usage(prompt_tokens, pieces)}

    async def events(self, pieces: AsyncIterator[Piece], job: _Job, *, with_usage: bool) -> AsyncIterator[bytes]:
        """Yield a server-sent event for each piece, then `[DONE]`; an error becomes an event."""
        seen: list[Piece] = []
        head = self._head | ({"object": "chat.completion.chunk"} if self._chat else {})
        try:
            if self._chat:
                delta = {"role": "assistant", "content": ""}
                yield _event(head | {"choices": [self._choice([], None) | {"delta": delta}]})
            async for piece in pieces:
                seen.append(piece)
                choice = self._choice(piece.scores, piece.finish)
                choice |= {"delta": {"content": piece.text}} if self._chat else {"text": piece.text}
                yield _event(head | {"choices": [choice]})
            if with_usage:
                yield _event(head | {"choices": [], "usage": _usage(job.prompt_tokens, seen)})
        except Exception:
            log.exception("serve: a generation failed")
            yield _event(_problem(500, "the generation failed"))
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
        yield _DONE

    def _choice(self, scores: list[TokenScore], finish: str | None) -> dict[str, Any]:
        return {
            "index": 0,
            "finish_reason": finish,
            "logprobs": self._log_likelihoods(scores) if self._scored else None,
        }

    def _log_likelihoods(self, scores: list[TokenScore]) -> dict[str, Any]:
        if self._chat:
            entries = [
                _entry(score.text, score.log_likelihood)
                | {"top_logprobs": [_entry(text, value) for text, value in score.likeliest]}
                for score in scores
            ]
            return {"content": entries, "refusal": None}
        offsets = []
        for score in scores:
            offsets.append(self._offset)
            self._offset += len(score.text)
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.log_likelihood for score in scores],
            "top_logprobs": [dict(reversed(score.likeliest)) for score in scores],
            "text_offset": offsets,
        }


class OpenAIEndpoints:
    """The endpoints; `service` has the model, the queue and the limits."""

    def __init__(self, service: Shared) -> None:
        self._service = service
        self._created = int(time.time())

    async def models(self) -> Response:
        """List the served models."""
        return _json({"object": "list", "data": [self._entry(model) for model in self._service.models()]})

    async def model(self, request: Request) -> Response:
        """Describe a served model."""
        return _json(self._entry(self._service.model(request.path_params["name"])))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = await self._body(request, _ChatBody)
        model = self._service.model(body.model)
        generator = _generator(model)
        if _CHAT_STATE not in generator.exported.state:
            raise RequestError(404, f"{model.identity} has no chat template; use /v1/completions")
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError(400, "top_logprobs: set logprobs to true with it")
        likeliest = (body.top_logprobs or 0) if body.logprobs else None
        value = {"messages": [_message(message) for message in body.messages]}
        return await self._generate(model, generator, value, body, likeliest, chat=True)

    async def complete(self, request: Request) -> Response:
        """Continue a text as it is, without a chat template."""
        body = await self._body(request, _CompletionBody)
        model = self._service.model(body.model)
        prompt: Any = body.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
            prompt = prompt[0]
        if isinstance(prompt, list) and any(isinstance(part, str) for part in prompt):
            raise RequestError(400, "prompt: send one text at a time")
        if not prompt:
            raise RequestError(400, "prompt: the text is empty")
        return await self._generate(model, _generator(model), prompt, body, body.logprobs, chat=False)

    async def embed(self, request: Request) -> Response:
        """Return the vector of each text."""
        service = self._service
        body = await self._body(request, _EmbeddingBody)
        model = service.model(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not texts:
            raise RequestError(400, "input: send at least one text")
        if len(texts) > service.settings.max_inputs:
            raise RequestError(400, f"input: {len(texts)} texts, more than {service.settings.max_inputs}")
        answers = await service.batcher.answer(model, texts)
        if "embedding" not in answers[0]:
            raise RequestError(404, f"{model.identity} does not make vectors; use /predict")
        tokenizer: Any = getattr(model.predictor, "tokenizer")  # noqa: B009 - not a part of the protocol
        tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(answer["embedding"], body.encoding_format)}
            for index, answer in enumerate(answers)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "data": data, "model": _name(model), "usage": usage})

    async def _generate(
        self,
        model: LoadedModel,
        generator: TokenGenerator,
        value: Any,
        body: _Body,
        likeliest: int | None,
        *,
        chat: bool,
    ) -> Response:
        try:
            grammar = await asyncio.to_thread(body.grammar) if isinstance(body, _ChatBody) else None
        except UserError as error:
            raise RequestError(400, str(error)) from error
        job = _Job(generator, likeliest, grammar, plain=not chat)
        running: Any = self._service.generations.start(job, value, body.changes())
        pieces: AsyncIterator[Piece] = await running
        answer = _Answer(_name(model), chat=chat, scored=likeliest is not None)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = answer.events(pieces, job, with_usage=with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return _json(answer.whole([piece async for piece in pieces], job.prompt_tokens))

    async def _body(self, request: Request, kind: type[_Parsed]) -> _Parsed:
        service = self._service
        with service.bodies.reserve() as reserve:
            content = parse_json(await read_body(request, reserve, service.settings))
        limit = service.settings.max_characters
        for name in ("messages", "prompt", "input"):
            value = content.get(name, "") if isinstance(content, dict) else ""
            for text in value if name == "input" and isinstance(value, list) else [value]:
                if (length := characters(text)) > limit:
                    raise RequestError(400, f"{name}: {length} characters, more than {limit}")
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = str(first["loc"][0]) if first["loc"] else "the body"
            said = "is not a parameter that this server knows" if first["type"] == "extra_forbidden" else first["msg"]
            raise RequestError(400, f"{place}: {said}") from None

    def _entry(self, model: LoadedModel) -> dict[str, Any]:
        """Return OpenAI's fields, and what a page must know to use the model."""
        identity, predictor = model.identity, model.predictor
        entry: dict[str, Any] = {"id": _name(model), "object": "model", "created": self._created}
        entry |= {
            "owned_by": "textmill",
            "version": identity.version,
            "alias": identity.alias,
            "manifest_sha256": identity.manifest_sha256,
        }
        entry |= {"task": predictor.task.name, "engine": getattr(predictor, "engine_name", ""), "paths": ["/predict"]}
        if isinstance(predictor, TokenGenerator):
            entry["paths"] += ["/v1/completions"]
            entry["paths"] += ["/v1/chat/completions"] if _CHAT_STATE in predictor.exported.state else []
            entry["generation"] = predictor.options.model_dump(mode="json")
            entry["json_schema"] = find_spec("llguidance") is not None
        return entry


def add_openai_routes(app: FastAPI, service: Shared) -> None:
    """Add the endpoints to an application; their errors have OpenAI's form."""
    endpoints = OpenAIEndpoints(service)
    for path, endpoint in (
        ("/v1/chat/completions", endpoints.chat),
        ("/v1/completions", endpoints.complete),
        ("/v1/embeddings", endpoints.embed),
    ):
        app.add_api_route(path, _with_errors(endpoint), methods=["POST"], include_in_schema=False)

    async def models(_: Request) -> Response:
        return await endpoints.models()

    app.add_api_route("/v1/models", _with_errors(models), methods=["GET"], include_in_schema=False)
    app.add_api_route("/v1/models/{name:path}", _with_errors(endpoints.model), methods=["GET"], include_in_schema=False)


def _with_errors(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except RequestError as refused:
            status = 400 if refused.status == 422 else refused.status  # OpenAI's status for a wrong parameter
            content = to_json(_problem(status, refused.message))
            return Response(content, status, refused.headers, media_type="application/json")

    return answer


def _problem(status: int, message: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _generator(model: LoadedModel) -> TokenGenerator:
    generator = model.predictor
    if not isinstance(generator, TokenGenerator):
        raise RequestError(404, f"{model.identity} does not generate text; use /predict")
    return generator


def model_name(identity: Identity) -> str:
    """Return the name of a model in this protocol: `NAME/VERSION`, or the path of a folder."""
    return f"{identity.name}/{identity.version}" if identity.version else identity.name


def _name(model: LoadedModel) -> str:
    return model_name(model.identity)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with one text: parts of type `text` are joined, `developer` is a newer name of `system`."""
    content, role = message.get("content"), message.get("role")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise RequestError(400, "messages: only parts of the type text are understood")
        content = "".join(str(part.get("text", "")) for part in content)
    return {**message, "role": "system" if role == "developer" else role, "content": content}


def _usage(prompt_tokens: int, pieces: list[Piece]) -> dict[str, int]:
    completion = sum(piece.tokens for piece in pieces)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
    }


def _entry(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": value, "bytes": list(text.encode())}


def _vector(values: list[float], form: str) -> list[float] | str:
    if form == "float":
        return values
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _event(content: Any) -> bytes:
    return b"data: %s\n\n" % to_json(content)


def _json(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")
