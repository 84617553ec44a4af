"""Rows that cannot be used, and why."""

from __future__ import annotations

from dataclasses import dataclass

EXCERPT = 120


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be used.

    Attributes:
        row: Position in the checked frame; of a file, the line that the row begins in (for Parquet: its number).
        column: The column at fault.
        reason: What is wrong with its value.
        file: Name of the file, where the row is one of a file.
        excerpt: Beginning of the row's text.
    """

    row: int
    column: str
    reason: str
    file: str = ""
    excerpt: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.column} {self.reason}"


def excerpt(value: object) -> str:
    """The beginning of a value, on one line, with what cannot be printed escaped."""
    text = "" if value is None else str(value)[:EXCERPT]
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
