"""Check the right answers that people give: to `POST /feedback`, and to `textmill label --done`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textmill.tasks.abilities import RealignsTargets, generates, has_several_labels
from textmill.text.label_lists import listed, read_labels
from textmill.text.rejected_rows import excerpt

if TYPE_CHECKING:
    from textmill.tasks.base import Task

_SHOWN, _NAMED = 40, 8


class UnknownLabelError(ValueError):
    """A label that the model does not know."""


def checked_answer(given: Any, task: Task, labels: Sequence[str], new_labels: bool) -> Any:
    """Return a right answer as it is stored: a label, a list of labels, or as given for other tasks.

    Args:
        given: The answer, as JSON or as the text of a cell.
        task: The task of the model.
        labels: Names of the labels that the model knows.
        new_labels: Whether other labels are allowed.

    Raises:
        UnknownLabelError: A label is new, and `new_labels` is false.
        ValueError: The task cannot have this answer; the message goes on after "the answer".
    """
    try:
        json.dumps(given, allow_nan=False)
    except ValueError:
        raise ValueError("has a number that is not finite") from None
    if has_several_labels(task) or "label" in task.target_columns:
        return _labels(given, task, labels, new_labels)
    if generates(task) or task.text_target_columns:
        if not isinstance(given, str):
            raise ValueError("is not a text")
    elif len(task.target_columns) == 1 and not isinstance(task, RealignsTargets):
        _check_value(given, task)
    return given  # of other tasks, only `prepare` can check it, with the input


def _labels(given: Any, task: Task, labels: Sequence[str], new_labels: bool) -> str | list[str]:
    from textmill.data.mapping import as_text, unified_label, unified_labels

    if has_several_labels(task):
        if not isinstance(given, str | int | float) and not (
            isinstance(given, list) and all(isinstance(each, str) for each in given)
        ):
            raise ValueError("is not a list of labels")
        names = read_labels(unified_labels(as_text(given) or ""), ",")
        right: str | list[str] = names
    else:
        right = unified_label(as_text(given) or "") if isinstance(given, str | int | float) else ""
        if not right or (isinstance(given, str) and listed(given) is not None):
            raise ValueError("is not a label; the task has one for each input")
        names = [right]
    unknown = [name for name in names if name not in labels]
    if unknown and not new_labels:
        known = ", ".join(labels[:_NAMED]) + (", ..." if len(labels) > _NAMED else "")
        shown = excerpt(unknown[0])[:_SHOWN]
        raise UnknownLabelError(f"{shown!r} is none of the labels {excerpt(known)}")
    return right


def _check_value(given: Any, task: Task) -> None:
    """Raise ValueError for an answer that `prepare` would reject whatever the input is."""
    import pandas as pd

    from textmill.data.mapping import as_text

    target = task.target_columns[0]
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ValueError("is neither a number nor a text")
    frame = pd.DataFrame([{**dict.fromkeys(task.text_columns, "x"), target: as_text(given)}])
    for row in task.check(frame, None):
        if row.column == target:
            raise ValueError(row.reason)
