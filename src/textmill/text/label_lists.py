"""Read a cell that holds several labels."""

from __future__ import annotations

import ast
import json
import re
from contextlib import suppress
from typing import Any

_YES = {"1", "1.0", "true", "yes"}
_NO = {"0", "0.0", "false", "no"}
_NUMPY = re.compile(r"(?<=['\"])\s+(?=['\"])")
_EXCERPT = 60
CHOICES = '{"choices"'
"""How Label Studio begins a cell of several labels in a CSV; one label stands by itself."""


def read_labels(value: Any, separator: str, pattern: str | None = None) -> list[str]:
    """Return the labels of a cell, each once, in its order; an empty cell has none.

    A cell is a JSON list, a list as Python writes it, or labels between separators. With `pattern`, a regular
    expression, its matches (or their first groups) are the labels.

    Raises:
        ValueError: The cell begins as a list, but is not a list of labels.
    """
    if not isinstance(value, str) or not value.strip():
        return []
    text = value.strip()
    if pattern is not None:
        found: list[Any] = [match[match.re.groups and 1] for match in re.finditer(pattern, text)]
    elif (text.startswith("[") and text.endswith("]")) or text.startswith(CHOICES):
        given = listed(text)
        if given is None or not all(isinstance(label, str | int | float) for label in given):
            raise ValueError(f"is not a list of labels: {text[:_EXCERPT]!r}")
        found = given
    else:
        found = text.split(separator)
    return list(dict.fromkeys(name for label in found if (name := _name(label))))


def read_flag(value: Any) -> bool:
    """Return whether a cell of 0 or 1 says that the label holds.

    Raises:
        ValueError: It says neither.
    """
    text = str(value).strip().casefold() if isinstance(value, str) else ""
    if text not in _YES | _NO:
        raise ValueError(f"is {text[:_EXCERPT]!r}, neither 0 nor 1" if text else "is missing")
    return text in _YES


def write_labels(labels: list[str]) -> str:
    """Return labels as one readable text."""
    return ", ".join(labels)


def listed(cell: Any) -> list[Any] | None:
    """Return a list, or one that is written as JSON, Python or NumPy in a text; None for anything else."""
    if isinstance(cell, str) and (text := cell.strip()).startswith(("[", CHOICES)) and text.endswith(("]", "}")):
        # NumPy writes no commas, and Python joins texts without one between them
        text = _NUMPY.sub(", ", text) if "," not in text else text
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(text)
                found = found["choices"] if isinstance(found, dict) else found
                return found if isinstance(found, list) else None
    return cell if isinstance(cell, list) else None


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip()
