"""Check the inputs of a prediction, plain texts and records, with pydantic models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError

from textmill.errors import UserError

_SHOWN, _NAMED = 60, 8


def not_blank(text: str) -> str:
    """Return the text.

    Raises:
        PydanticCustomError: It has no visible character.
    """
    if not text.strip():
        raise PydanticCustomError("blank", "is empty")
    return text


Text = Annotated[str, AfterValidator(not_blank)]
"""A text with at least one visible character."""


class Input(BaseModel):
    """One natural input: a record, or its only text as a plain string. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore", str_min_length=0)  # a limit makes pydantic read the text as Unicode

    @model_validator(mode="before")
    @classmethod
    def _record_of(cls, value: Any) -> Any:
        return {next(iter(cls.model_fields)): value} if isinstance(value, str) and len(cls.model_fields) == 1 else value

    @classmethod
    def form(cls) -> str:
        """Return what a user should give, for an error message."""
        record = json.dumps(dict.fromkeys(cls.model_fields, "..."))
        return f"Give a text or {record}" if len(cls.model_fields) == 1 else f"Give {record}"


InputT = TypeVar("InputT", bound=Input)


@lru_cache
def texts_model(*fields: str) -> type[Input]:
    """Return a model of records that have a text under each of `fields`."""
    model: Any = create_model  # its overloads do not take fields by name
    texts: type[Input] = model("Texts", __base__=Input, **dict.fromkeys(fields, (Text, ...)))
    return texts


def read_inputs(values: Sequence[Any], model: type[InputT]) -> list[InputT]:
    """Check natural inputs.

    Raises:
        UserError: There is none, or one of them does not fit `model`; the message has its number, from 1.
    """
    if isinstance(values, str | bytes | Mapping) or hasattr(values, "columns") or not hasattr(values, "__len__"):
        raise UserError(f"not a list of inputs but a {type(values).__name__}", fix=f"Make a list. {model.form()}")
    if len(values) == 0:
        raise UserError("no input", fix=model.form())
    try:
        return _list_of(model).validate_python(list(values))
    except ValidationError as error:
        problem = error.errors()[0]
        position, *path = problem["loc"]
        field = ".".join(map(str, path)) or "input"
        shown = _shown(problem["input"])
        if problem["type"] == "missing":
            what = f"there is no {field} among {sorted(map(str, problem['input']))[:_NAMED]}"
        elif problem["type"] == "string_type":
            what = f"the {field} is not a text: {shown}"
        elif problem["type"] == "model_type":
            what = f"neither a text nor a record: {shown}"
        elif problem["type"] == "blank":
            what = f"the {field} is empty"
        else:
            what = f"{field}: {problem['msg'].removeprefix('Value error, ')}"
        raise UserError(what, where=f"input {int(position) + 1}", fix=model.form()) from error


@lru_cache
def _list_of(model: type[InputT]) -> TypeAdapter[list[InputT]]:
    """Return the checker of a list of records; to build one takes longer than to check a text."""
    return TypeAdapter(list[model])  # type: ignore[valid-type]


def _shown(value: Any) -> str:
    try:
        return f"{str(value)[:_SHOWN]!r}"
    except Exception:  # the value's own: nested too deep, a number too long
        return f"of type {type(value).__name__}"


def input_schema(model: type[Input]) -> dict[str, Any]:
    """Return the JSON schema of a natural input: a record of `model`, or also a plain text where it takes one."""
    record = model.model_json_schema()
    try:
        model.model_validate("text")
    except ValidationError:
        return record
    return {"anyOf": [{"type": "string"}, record]}
