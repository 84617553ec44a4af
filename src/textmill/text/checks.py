"""Checks of a task's columns by pandera, told as rejects, and of natural inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 8
_EXCERPT = 60


def failed_rows(schema: Any, frame: pd.DataFrame, *, unknown: str, known: Sequence[str]) -> list[RejectedRow]:
    """Check a frame and give its unusable rows, each once, with the first reason.

    Args:
        schema: A pandera schema; the names of its checks are the reasons.
        frame: The rows.
        unknown: The name of the check that a value is among the known ones.
        known: These, to be told beside the value.
    """
    import pandera.pandas as pa

    try:
        schema.validate(frame.reset_index(drop=True), lazy=True)
    except pa.errors.SchemaErrors as error:
        failures = error.failure_cases
    else:
        return []
    choice = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
    found: dict[int, RejectedRow] = {}
    for case in failures.to_dict("records"):
        reason = "is missing" if case["check"] == "not_nullable" else str(case["check"])
        if reason == unknown:
            reason = f"{str(case['failure_case'])[:_EXCERPT]!r} {unknown} {choice}"
        position = int(case["index"])
        found.setdefault(position, RejectedRow(position, str(case["column"]), reason))
    return [found[position] for position in sorted(found)]


def parsed_texts(values: Sequence[Any], name: str) -> pd.DataFrame:
    """Strings, or records with the field `name`, as a frame with that column.

    Raises:
        UserError: There is no input, or one is empty or of another kind.
    """
    import pandas as pd

    if len(values) == 0:
        raise UserError("no input", fix="Give at least one text")
    texts = []
    for position, value in enumerate(values, start=1):
        text = value.get(name) if isinstance(value, Mapping) else value
        where = f"input {position}"
        if not isinstance(text, str):
            raise UserError(f"{value!r} is no text", where=where, fix=f'Give a string or {{"{name}": "..."}}')
        if not text.strip():
            raise UserError("the text is empty", where=where)
        texts.append(text)
    return pd.DataFrame({name: texts})
