"""Rejected rows and their reasons."""

from __future__ import annotations

from dataclasses import dataclass

EXCERPT = 120


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be used.

    Attributes:
        row: Position in the checked frame, or first line in the file (Parquet: row number).
        column: Name of the column at fault.
        reason: Why its value is rejected.
        file: Name of the file, if the row is from a file.
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
    """Return the beginning of a value on one line, with unprintable characters escaped."""
    text = "" if value is None else str(value)[:EXCERPT]
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
