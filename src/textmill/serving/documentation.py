"""The OpenAPI document, with the task's examples and the served model's answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textmill.config.sections.generation import GenerationConfig
from textmill.serving.limits import characters
from textmill.serving.streaming import StreamingGenerator
from textmill.text.inputs import input_schema

if TYPE_CHECKING:
    from fastapi import FastAPI

    from textmill.serving.loading import LoadedModel
    from textmill.serving.settings import ServeSettings

_RECORD = {"type": "object", "additionalProperties": True}
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_FEEDBACK = {
    "application/json": {
        "schema": {
            "type": "object",
            "properties": {
                "request": {"type": "string", "description": "The header X-Textmill-Request of the answer."},
                "position": {"type": "integer", "minimum": 0, "default": 0},
                "answer": {"description": "The right answer, such as a label."},
            },
            "required": ["request", "answer"],
            "additionalProperties": False,
        }
    }
}
_REFUSALS = {
    "400": "The body is not JSON.",
    "401": "The bearer token is missing or wrong.",
    "403": "The `Host` or `Origin` is not this server's (`--allowed-host`).",
    "408": "The head or the body was not received in time.",
    "413": "The body is too large.",
    "415": "The header `Content-Type` is not `application/json`.",
    "422": "The body has another form, an input is too long, or the task rejects it.",
    "431": "The head is too large.",
    "503": "No model yet, overloaded, or shutting down; retry after `Retry-After` seconds.",
}


def openapi_document(
    app: FastAPI, model: LoadedModel | None, settings: ServeSettings, *, token: bool
) -> dict[str, Any]:
    """Return the document for the served model; it has `/generate` if the model generates.

    With a token it has no examples: a browser cannot send the token for this page, and inputs and answers
    are only for clients that have it.
    """
    from fastapi.openapi.utils import get_openapi

    openapi = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    paths = openapi["paths"]
    given = input_schema(model.predictor.task.input_model) if model is not None else {}
    paths["/predict"]["post"] |= {
        "requestBody": _body(_request_shape(given, settings)),
        "responses": _answers(_predict_shape(_shape_of(model.examples[0][1]) if model is not None else _RECORD)),
    }
    paths["/generate"]["post"] |= {"requestBody": _body(_generate_shape(given)), "responses": _answers(_stream_shape())}
    paths["/feedback"]["post"] |= {"requestBody": {"required": True, "content": _FEEDBACK}, "responses": _accepted()}
    if model is None or not isinstance(model.predictor, StreamingGenerator):
        del paths["/generate"]
    if settings.capture is None:
        del paths["/feedback"]
    if model is not None and not token:
        inputs, answers = [_natural(value) for value, _ in model.examples], [answer for _, answer in model.examples]
        content = paths["/predict"]["post"]["requestBody"]["content"]["application/json"]
        content["examples"] = {
            "several": {"summary": "Several inputs", "value": {"inputs": inputs}},
            "one": {"summary": "One input", "value": {"input": inputs[0]}},
        }
        paths["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["examples"] = {
            "several": {"summary": f"From {model.identity}", "value": {"outputs": answers}},
            "one": {"summary": f"From {model.identity}", "value": {"output": answers[0]}},
        }
    if token:
        openapi.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        openapi["security"] = [{"token": []}]
    return openapi


def _natural(value: Any) -> Any:
    """Return the text of a record with one text field; other inputs unchanged."""
    if isinstance(value, dict) and len(value) == 1 and characters(value):
        return next(iter(value.values()))
    return value


def _request_shape(given: dict[str, Any], settings: ServeSettings) -> dict[str, Any]:
    several = {"type": "array", "items": given, "minItems": 1, "maxItems": settings.max_inputs}
    return {
        "oneOf": [
            {"type": "object", "properties": {"inputs": several}, "required": ["inputs"]},
            {"type": "object", "properties": {"input": given}, "required": ["input"]},
        ]
    }


def _shape_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an answer: types of its fields, no values; other inputs may lack some."""
    kinds = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    fields = {name: {"type": kinds[type(value)]} for name, value in answer.items() if type(value) in kinds}
    return {**_RECORD, "properties": fields}


def _predict_shape(answer: dict[str, Any]) -> dict[str, Any]:
    several = {"type": "object", "properties": {"outputs": {"type": "array", "items": answer}}}
    single = {"type": "object", "properties": {"output": answer}}
    return {"application/json": {"schema": {"oneOf": [several, single]}}}


def _generate_shape(given: dict[str, Any]) -> dict[str, Any]:
    options = {
        "type": "object",
        "description": "Changes to the model's generation options.",
        "properties": GenerationConfig.model_json_schema()["properties"],
        "additionalProperties": False,
    }
    properties = {"input": given, "options": options, "stream": {"type": "boolean", "default": False}}
    return {"type": "object", "properties": properties, "required": ["input"]}


def _stream_shape() -> dict[str, Any]:
    whole = {"type": "object", "properties": {"output": {"type": "string"}}}
    events = {"type": "string", "description": "Events `token`, then `end` with the whole text, or `error`."}
    return {"application/json": {"schema": whole}, "text/event-stream": {"schema": events}}


def _body(shape: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": shape}}}


def _accepted() -> dict[str, Any]:
    refusals = {name: value for name, value in _answers({}).items() if name != "200"}
    error = {"application/json": {"schema": _ERROR}}
    return {
        "202": {"description": "The answer will be written.", "content": {"application/json": {"schema": _RECORD}}},
        "404": {"description": "No such request is known.", "content": error},
        "507": {"description": "The folder of captured requests is full.", "content": error},
        **refusals,
    }


def _answers(content: dict[str, Any]) -> dict[str, Any]:
    refusals = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _REFUSALS.items()
    }
    return {"200": {"description": "The answers, in the order of the inputs.", "content": content}, **refusals}
