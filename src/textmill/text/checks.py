"""Check a task's columns and return the rejected rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    import pandas as pd

_NAMED = 8
_EXCERPT = 60


def empty_rows(frame: pd.DataFrame, columns: Sequence[str]) -> dict[int, RejectedRow]:
    """Return the rows with a missing or blank cell in `columns`, by position; only the first cell of each row."""
    rejected: dict[int, RejectedRow] = {}
    for name in columns:
        empty = frame[name].isna() | (frame[name].astype(str).str.strip() == "")
        for position in empty.to_numpy().nonzero()[0].tolist():
            rejected.setdefault(position, RejectedRow(position, name, "is empty"))
    return rejected


def failed_rows(schema: Any, frame: pd.DataFrame, *, unknown: str, known: Sequence[str]) -> list[RejectedRow]:
    """Check a frame and return its rejected rows, each once, with the first reason.

    The names of the schema's checks are the reasons. For the check `unknown`, that a value is one
    of the known ones, the reason lists these.
    """
    import pandera.pandas as pa

    try:
        schema.validate(frame.reset_index(drop=True), lazy=True)
    except pa.errors.SchemaErrors as error:
        failures = error.failure_cases
    else:
        return []
    choice = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
    rejected: dict[int, RejectedRow] = {}
    for case in failures.to_dict("records"):
        reason = "is missing" if case["check"] == "not_nullable" else str(case["check"])
        if reason == unknown:
            reason = f"{str(case['failure_case'])[:_EXCERPT]!r} {unknown} {choice}"
        position = int(case["index"])
        rejected.setdefault(position, RejectedRow(position, str(case["column"]), reason))
    return [rejected[position] for position in sorted(rejected)]
