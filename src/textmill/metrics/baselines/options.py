"""The options of a task's baselines, and errors shared by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from textmill.config.section import Section
from textmill.errors import UserError

OptionsT = TypeVar("OptionsT", bound=Section)

WORD = r"(?u)\b\w+\b"
"""Any run of letters and digits. Scikit-learn's default would drop words of one character."""


def no_words(error: ValueError, fix: str) -> UserError:
    """Return the error of a baseline whose scikit-learn vectorizer has no features left."""
    return UserError(f"the training split has no words for the baseline ({error})", where="evaluate.baselines", fix=fix)


def check_options(kind: type[OptionsT], options: Mapping[str, Any]) -> OptionsT:
    """Return `evaluate.baselines` as its own class.

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
