"""Fifty JSON schemas of the kinds that programs ask models for."""

from __future__ import annotations

from typing import Any

_NAME = {"type": "string", "maxLength": 12}
_SMALL = {"type": "integer", "minimum": 0, "maximum": 120}


def _record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(items: Any, least: int = 1, most: int = 3) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


SCHEMAS: list[dict[str, Any]] = [
    {"type": "boolean"},
    {"type": "null"},
    _NAME,
    _SMALL,
    {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.1},
    {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 9},
    {"type": "integer", "multipleOf": 5, "minimum": 10, "maximum": 40},
    {"type": "integer", "minimum": -9, "maximum": -3},
    {"enum": ["red", "green", "blue"]},
    {"enum": [1, 2, "three", None]},
    {"const": {"version": 1}},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2}$"},
    {"type": "string", "pattern": "^(yes|no)$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 1, "maximum": 3}]},
    {"oneOf": [{"const": "a"}, {"const": "b"}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]},
    _list({"type": "boolean"}),
    _list(_SMALL, 2, 4),
    _list({"enum": ["cat", "dog"]}, 3, 3),
    _list(_list({"type": "boolean"}, 1, 2), 1, 2),
    {"type": "array", "prefixItems": [_NAME, _SMALL], "items": False, "minItems": 2},
    {"type": "array", "maxItems": 0},
    _record(),
    _record(name=_NAME),
    _record(name=_NAME, age=_SMALL),
    _record(label={"enum": ["positive", "negative", "neutral"]}),
    _record(label={"enum": ["spam", "ham"]}, confidence={"enum": ["low", "high"]}),
    _record(answer={"type": "boolean"}, reason=_NAME),
    _record(point=_record(x=_SMALL, y=_SMALL)),
    _record(a=_record(b=_record(c={"type": "null"}))),
    _record(tags=_list(_NAME)),
    _record(people=_list(_record(name=_NAME, age=_SMALL), 1, 2)),
    _record(colour={"enum": ["rot", "grün", "蓝"]}),
    _record(**{"with space": {"type": "boolean"}, 'with "quote"': {"type": "boolean"}}),
    {"type": "object", "properties": {"a": _SMALL, "b": _SMALL}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": False},
    {
        "type": "object",
        "properties": {"id": _SMALL},
        "required": ["id"],
        "maxProperties": 1,
        "additionalProperties": False,
    },
    {"$defs": {"size": {"enum": ["S", "M", "L"]}}, **_record(size={"$ref": "#/$defs/size"})},
    {"definitions": {"n": _SMALL}, **_record(first={"$ref": "#/definitions/n"}, last={"$ref": "#/definitions/n"})},
    {
        "$defs": {"node": _record(value=_SMALL, next={"anyOf": [{"type": "null"}, {"const": "end"}]})},
        "$ref": "#/$defs/node",
    },
    _record(kind={"const": "circle"}, radius=_SMALL),
    {"anyOf": [_record(kind={"const": "circle"}, radius=_SMALL), _record(kind={"const": "square"}, side=_SMALL)]},
    _record(when={"type": "string", "format": "date"}, urgent={"type": "boolean"}),
    _record(name=_NAME, nickname={"anyOf": [_NAME, {"type": "null"}]}, scores=_list({"type": "boolean"}, 2, 2)),
]
UNFULFILLABLE: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    _record(a={"type": "string", "minLength": 5, "maxLength": 2}),
    {"type": "nonsense"},
    {"enum": []},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"$ref": "#/nowhere"},
]
