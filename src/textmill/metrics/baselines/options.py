"""The options of a task's baselines, checked with the key in the error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from textmill.config.section import Section
from textmill.errors import UserError

OptionsT = TypeVar("OptionsT", bound=Section)


def check_options(kind: type[OptionsT], options: Mapping[str, Any]) -> OptionsT:
    """`evaluate.baselines` as its own class.

    Raises:
        UserError: An option is unknown or out of range.
    """
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("evaluate.baselines", *first["loc"])))
        choice = f"The options are {', '.join(kind.model_fields)}"
        raise UserError(f"{first['input']!r}: {first['msg']}", where=key, fix=choice) from error
