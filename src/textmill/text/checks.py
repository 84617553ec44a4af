"""Checks of a task's columns by pandera, as rejected rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
