"""Rows that cannot be used: kept readable, counted, never dropped in silence."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

EXCERPT = 120
_EXAMPLES = 3


@dataclass(frozen=True)
class RejectedRow:
    """A row of a file, by the line that it begins in (for Parquet: its number), and why it is no use."""

    file: str
    row: int
    column: str
    reason: str
    excerpt: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.column} {self.reason}"


def excerpt(value: object) -> str:
    """The beginning of a value, on one line, with what cannot be printed escaped."""
    text = "" if value is None else str(value)[:EXCERPT]
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


class RejectFile:
    """`rejects.csv`, written as the rows come, and their counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0
        self.by_reason: Counter[str] = Counter()
        self.examples: list[RejectedRow] = []
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["file", "row", "column", "reason", "text"])

    def add(self, rows: Iterable[RejectedRow]) -> None:
        """Append rows."""
        for row in rows:
            self._writer.writerow(astuple(row))
            self.total += 1
            self.by_reason[f"{row.column} {row.reason}"] += 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(row)

    def flush(self) -> None:
        """Bring what was added to the disk."""
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
