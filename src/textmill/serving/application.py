"""The HTTP interface of a served model."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from pydantic_core import to_json
from starlette.exceptions import HTTPException

import textmill
from textmill.serving.access import BearerToken
from textmill.serving.batching import MicroBatcher
from textmill.serving.documentation import document
from textmill.serving.generation import Generations, StreamingGenerator, events
from textmill.serving.limits import HeldBytes, Question, Refused, busy, parse_question, read_body
from textmill.serving.observing import Observed, Traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Receive, Scope, Send

    from textmill.serving.loading import LoadedModel
    from textmill.serving.metrics import ServingMetrics
    from textmill.serving.settings import ServeSettings
    from textmill.serving.watching import Watcher

MODEL_HEADER = "X-Textmill-Model"
_DESCRIPTION = 'Answers of a registered model. A refusal has the form {"error": "one line"}.'


class Service:
    """What the paths share: the current model, the queue, the limits.

    Args:
        settings: Limits and batching.
        watcher: Has the current model.
        metrics: Shown at `/metrics`.
    """

    def __init__(self, settings: ServeSettings, watcher: Watcher, metrics: ServingMetrics) -> None:
        self.settings = settings
        self.watcher = watcher
        self.metrics = metrics
        self.traffic = Traffic()
        self.batcher = MicroBatcher(settings, metrics)
        self.generations = Generations(settings)
        self.held = HeldBytes(settings.max_held_bytes)

    def model(self) -> LoadedModel:
        """The model that answers a request from its beginning to its end.

        Raises:
            Refused: 503 while there is none.
        """
        if self.watcher.current is None:
            raise busy("the model is still being loaded")
        return self.watcher.current

    async def predict(self, request: Request) -> Response:
        """Answers to one or several inputs, as `textmill predict` gives them."""
        model = self.model()
        with self.held.room() as share:
            question = parse_question(await read_body(request, share, self.settings), self.settings)
            answers = await self.batcher.answer(model, question.values)
        return _json({"output": answers[0]} if question.single else {"outputs": answers}, model)

    async def generate(self, request: Request) -> Response:
        """A text for one input, whole or (`"stream": true`) as server-sent events while it is made."""
        model = self.model()
        generator = model.predictor
        if not isinstance(generator, StreamingGenerator):
            raise Refused(404, f"{model.identity} does not generate; use /predict")
        with self.held.room() as share:
            body = await read_body(request, share, self.settings)
            value, options, stream = _generation(parse_question(body, self.settings, options=True))
        pieces = await self.generations.start(generator, value, options)
        if stream:
            headers = {MODEL_HEADER: _model_header(model), "Cache-Control": "no-store"}
            return StreamingResponse(events(pieces), media_type="text/event-stream", headers=headers)
        return _json({"output": "".join([piece async for piece in pieces])}, model)

    async def health(self) -> Response:
        """200 as long as the process answers."""
        return JSONResponse({"status": "alive"})

    async def ready(self) -> Response:
        """200 when requests are welcome; 503 while no model is loaded and while shutting down."""
        if self.traffic.draining:
            raise busy("shutting down")
        return JSONResponse({"status": "ready", "model": str(self.model().identity)})

    async def version(self) -> Response:
        """Which model answers, by name, version, digest of its manifest and git commit."""
        identity = self.model().identity
        return JSONResponse(
            {
                "name": identity.name,
                "version": identity.version or None,
                "manifest_sha256": identity.manifest_sha256,
                "git_commit": identity.commit,
                "textmill": textmill.__version__,
            }
        )

    async def metric_page(self) -> Response:
        """Figures for Prometheus."""
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


class DirectPredict:
    """ASGI middleware that answers `POST /predict` itself.

    FastAPI's own way to an endpoint that takes the bare request took a third of the server's Python
    time. It still has the route, for its documentation and for other methods.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or scope["path"] != "/predict" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self.service.predict(request)
        except Refused as refused:
            response = refused.response()
        await response(scope, receive, send)


def build_application(service: Service, token: str | None = None) -> FastAPI:
    """The application; with a token, all paths but probes and `/docs` want it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.batcher.close()
        service.generations.close()

    app = FastAPIOffline(  # the script of /docs is served too: a browser need not reach another server
        static_url="/docs/static",
        title="Textmill",
        version=textmill.__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={Refused: _refused, HTTPException: _not_served, Exception: _failed},
    )
    for path, endpoint in (("/predict", service.predict), ("/generate", service.generate)):
        app.add_api_route(path, endpoint, methods=["POST"], name=path[1:], response_model=None)
    probes = (("/health", service.health), ("/ready", service.ready))
    for path, probe in (*probes, ("/version", service.version), ("/metrics", service.metric_page)):
        app.add_api_route(path, probe, methods=["GET"], name=path[1:], response_model=None)
    app.openapi = lambda: document(  # type: ignore[method-assign]
        app, service.watcher.current, service.settings, token=token is not None
    )
    app.add_middleware(DirectPredict, service=service)
    if token is not None:
        app.add_middleware(BearerToken, token=token)
    app.add_middleware(Observed, traffic=service.traffic, metrics=service.metrics)
    return app


def _generation(question: Question) -> tuple[Any, dict[str, Any], bool]:
    """Input, options and whether to stream."""
    options, stream = question.options.get("options", {}), question.options.get("stream", False)
    if not question.single:
        raise Refused(422, 'send one {"input": ...} at a time')
    if not isinstance(options, dict) or not isinstance(stream, bool):
        raise Refused(422, "options must be a record and stream true or false")
    return question.values[0], options, stream


def _json(content: dict[str, Any], model: LoadedModel) -> Response:
    return Response(to_json(content), media_type="application/json", headers={MODEL_HEADER: _model_header(model)})


def _model_header(model: LoadedModel) -> str:
    identity = model.identity
    return f"{identity.name}/{identity.version}" if identity.version else identity.manifest_sha256


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


async def _not_served(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(_request: Request, _error: Exception) -> Response:
    """Uvicorn logs the error."""
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
