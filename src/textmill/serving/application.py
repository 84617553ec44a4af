"""The HTTP interface of a served model."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from textmill import __version__
from textmill.serving.access import BearerToken, LocalRequests, is_loopback
from textmill.serving.batching import MicroBatcher
from textmill.serving.capture import REQUEST_HEADER, Capture
from textmill.serving.documentation import openapi_document
from textmill.serving.limits import (
    BodyMemory,
    Feedback,
    ParsedRequest,
    RequestError,
    parse_feedback,
    parse_request,
    read_body,
    unavailable,
)
from textmill.serving.openai_protocol import add_openai_routes, model_name
from textmill.serving.right_answers import UnknownLabelError, checked_answer
from textmill.serving.streaming import GenerationPool, StreamingGenerator, server_sent_events
from textmill.serving.traffic import Traffic, TrafficMiddleware
from textmill.serving.trial import KEY_HEADER, Served, Trials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from textmill.serving.loading import LoadedModel
    from textmill.serving.metrics import ServingMetrics
    from textmill.serving.settings import ServeSettings
    from textmill.serving.watcher import Watcher

MODEL_HEADER = "X-Textmill-Model"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'none'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
_DESCRIPTION = 'Predictions of a registered model. Errors have the form {"error": "one line"}.'


class Service:
    """The endpoints and what they share: the current model, the queue, the limits."""

    def __init__(
        self,
        settings: ServeSettings,
        watcher: Watcher,
        metrics: ServingMetrics,
        trials: Trials | None = None,
        *beside: Watcher,
    ) -> None:
        self.settings = settings
        self.watcher = watcher
        self.watchers = (watcher, *beside)
        self.metrics = metrics
        self.traffic = Traffic()
        self.batcher = MicroBatcher(settings, metrics)
        self.generations = GenerationPool(settings)
        self.bodies = BodyMemory(settings.max_held_bytes)
        self.capture = Capture(settings.capture, settings, metrics) if settings.capture else None
        self.trials = trials
        if trials:
            trials.follow(None, settings, metrics)
            watcher.on_check = lambda model: trials.follow(model, settings, metrics)

    def models(self) -> list[LoadedModel]:
        """Return the current models: the champion, then a different one beside it.

        Raises:
            RequestError: 503 while one of them is not loaded.
        """
        current = [watcher.current for watcher in self.watchers]
        if None in current:
            raise unavailable("the model is being loaded")
        return list({each.identity: each for each in reversed(current) if each}.values())[::-1]

    def model(self, name: str | None = None) -> LoadedModel:
        """Return the current model, or the one of a name; a request uses it from beginning to end.

        Names are `NAME/VERSION`, `NAME`, and the digest of the manifest.

        Raises:
            RequestError: 503 while no model is loaded, 404 if the name is of another model.
        """
        if self.watcher.current is None:
            raise unavailable("the model is being loaded")
        if not name:
            return self.watcher.current
        models = self.models()
        for model in models:
            identity = model.identity
            if name in (model_name(identity), identity.name, identity.manifest_sha256):
                return model
        served = ", ".join(repr(model_name(model.identity)) for model in models)
        raise RequestError(404, f"the model {name!r} is not served here; this server has {served}")

    async def predict(self, request: Request) -> Response:
        """Predict for one or several inputs, as `textmill predict` does."""
        model = self.model(request.headers.get(MODEL_HEADER))
        with self.bodies.reserve() as reserve:
            parsed = parse_request(await read_body(request, reserve, self.settings), self.settings)
            trial = self.trials.current if self.trials else None
            if trial is None or model is not self.watcher.current:
                served = Served(model, parsed.values, await self.batcher.answer(model, parsed.values))
            else:
                key = request.headers.get(KEY_HEADER)
                served = await trial.answer(self.batcher, model, parsed.values, key)
        content = {"output": served.answers[0]} if parsed.single else {"outputs": served.answers}
        headers = self._capture(served.model, parsed.values, served.answers)
        if trial:
            trial.compare(served, headers.get(REQUEST_HEADER, ""), self.batcher.busy)
        return _json(content, served.model, headers)

    async def generate(self, request: Request) -> Response:
        """Generate text for one input; with `"stream": true` as server-sent events during generation."""
        model = self.model(request.headers.get(MODEL_HEADER))
        generator = model.predictor
        if not isinstance(generator, StreamingGenerator):
            raise RequestError(404, f"{model.identity} does not generate text; use /predict")
        with self.bodies.reserve() as reserve:
            body = await read_body(request, reserve, self.settings)
            value, options, stream = _generation(parse_request(body, self.settings, options=True))
        pieces = await self.generations.start(generator, value, options)
        if stream:
            headers = {MODEL_HEADER: _model_header(model), "Cache-Control": "no-store"}
            return StreamingResponse(server_sent_events(pieces), media_type="text/event-stream", headers=headers)
        text = "".join([piece async for piece in pieces])
        return _json({"output": text}, model, self._capture(model, [value], [text]))

    async def feedback(self, request: Request) -> Response:
        """Store the right answer to an input: `{"request": ID, "answer": ...}`, and `position` of several inputs."""
        if self.capture is None:
            raise RequestError(404, "this server takes no feedback; start it with --capture")
        with self.bodies.reserve() as reserve:
            given = parse_feedback(await read_body(request, reserve, self.settings), self.settings)
        if not await asyncio.to_thread(self.capture.knows, given.request, given.position):
            raise RequestError(404, f"no request {given.request!r} with an input {given.position} is known")
        right = self._right_answer(given)
        await asyncio.to_thread(self.capture.require_space)
        self.capture.give(given.request, given.position, right)
        if self.trials and self.trials.current:
            self.trials.current.label(given.request, given.position, right)
        return JSONResponse({"accepted": True}, 202)

    def _right_answer(self, given: Feedback) -> Any:
        """Return the checked answer: of the model that was asked if it is served here, else of the champion."""
        assert self.capture is not None
        asked, current = self.capture.model_of(given.request), self.model()
        model = asked if asked and asked in [watcher.current for watcher in self.watchers] else current
        try:
            return checked_answer(given.answer, model.predictor.task, model.labels, self.settings.new_labels)
        except UnknownLabelError as error:
            raise RequestError(422, f"the answer {error}; the server's option --new-labels allows others") from None
        except ValueError as error:
            raise RequestError(422, f"the answer {error}") from None

    def _capture(self, model: LoadedModel, values: list[Any], answers: Sequence[Any]) -> dict[str, str]:
        """Return the header that names the request for feedback."""
        return {REQUEST_HEADER: self.capture.take(model, values, answers)} if self.capture else {}

    async def health(self) -> Response:
        """Answer 200 while the process runs."""
        return JSONResponse({"status": "alive"})

    async def ready(self) -> Response:
        """Answer 200 if requests are accepted; 503 without a model and while shutting down."""
        if self.traffic.draining:
            raise unavailable("shutting down")
        return JSONResponse({"status": "ready", "model": str(self.models()[0].identity)})

    async def version(self) -> Response:
        """Return name, version, manifest digest and git commit of the model."""
        identity = self.model().identity
        return JSONResponse(
            {
                "name": identity.name,
                "version": identity.version or None,
                "manifest_sha256": identity.manifest_sha256,
                "git_commit": identity.commit,
                "textmill": __version__,
            }
        )

    async def page(self) -> Response:
        """Return the page on which a person tries the model. With a token it shows nothing of the model before."""
        text = resources.files(__package__).joinpath("page", "index.html").read_text(encoding="utf-8")
        headers = {"Content-Security-Policy": _PAGE_POLICY, "Referrer-Policy": "no-referrer"}
        return Response(text, media_type="text/html; charset=utf-8", headers=headers)

    async def trial_verdict(self) -> Response:
        """Return the current verdict on the challenger of --shadow or --canary."""
        if self.trials is None:
            raise RequestError(404, "this server tries no challenger; start it with --shadow or --canary")
        return JSONResponse(self.trials.verdict())

    async def metric_page(self) -> Response:
        """Return metrics for Prometheus."""
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


class DirectPredict:
    """ASGI middleware that answers `POST /predict` itself.

    FastAPI's route with a bare request took a third of the server's Python time. FastAPI still has the route,
    for documentation and for other methods.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer `POST /predict`; pass other requests on."""
        if scope["type"] != "http" or scope["path"] != "/predict" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self.service.predict(request)
        except RequestError as refused:
            response = refused.response()
        await response(scope, receive, send)


def build_application(service: Service, token: str | None = None) -> FastAPI:
    """Build the application; with a token, all paths but probes and `/docs` require it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.batcher.close()
        service.generations.close()
        if service.capture:
            service.capture.close()
        if service.trials:
            service.trials.close()

    app = FastAPIOffline(  # serves the script of /docs itself: a browser needs no other server
        static_url="/docs/static",
        title="Textmill",
        version=__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={RequestError: _refused, HTTPException: _not_served, Exception: _failed},
    )
    posted = (("/predict", service.predict), ("/generate", service.generate), ("/feedback", service.feedback))
    for path, endpoint in posted:
        app.add_api_route(path, endpoint, methods=["POST"], name=path[1:], response_model=None)
    probes = (("/health", service.health), ("/ready", service.ready))
    for path, probe in (*probes, ("/version", service.version), ("/metrics", service.metric_page)):
        app.add_api_route(path, probe, methods=["GET"], name=path[1:], response_model=None)
    app.add_api_route("/trial", service.trial_verdict, methods=["GET"], include_in_schema=False)
    app.add_api_route("/", service.page, methods=["GET"], include_in_schema=False)
    app.mount("/page", StaticFiles(packages=[("textmill.serving", "page")]))
    add_openai_routes(app, service)
    app.openapi = lambda: openapi_document(  # type: ignore[method-assign]
        app, service.watcher.current, service.settings, token=token is not None
    )
    app.add_middleware(DirectPredict, service=service)
    if token is not None:
        app.add_middleware(BearerToken, token=token)
    if service.settings.allowed_hosts or is_loopback(service.settings.host):
        app.add_middleware(LocalRequests, names=service.settings.allowed_hosts)
    app.add_middleware(TrafficMiddleware, traffic=service.traffic, metrics=service.metrics)
    return app


def _generation(parsed: ParsedRequest) -> tuple[Any, dict[str, Any], bool]:
    """Return the input, the generation options and whether to stream."""
    options, stream = parsed.options.get("options", {}), parsed.options.get("stream", False)
    if not parsed.single:
        raise RequestError(422, 'send one {"input": ...} at a time')
    if not isinstance(options, dict) or not isinstance(stream, bool):
        raise RequestError(422, "options must be a record, stream must be true or false")
    return parsed.values[0], options, stream


def _json(content: dict[str, Any], model: LoadedModel, headers: dict[str, str]) -> Response:
    headers = {MODEL_HEADER: _model_header(model), **headers}
    return Response(to_json(content), media_type="application/json", headers=headers)


def _model_header(model: LoadedModel) -> str:
    identity = model.identity
    return model_name(identity) if identity.version else identity.manifest_sha256


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error.response()


async def _not_served(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(_request: Request, _error: Exception) -> Response:
    """Answer 500; Uvicorn logs the error."""
    return JSONResponse({"error": "internal error; see the server's log"}, 500)
