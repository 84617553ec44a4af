"""Write rejected rows to a file that people can read, and count them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

from textmill.text.rejected_rows import RejectedRow

_EXAMPLES = 3


class RejectedRowsFile:
    """`rejects.csv`, written row by row, and its counts.

    Args:
        path: The file.
        mask: Replaces personal data in the beginnings of the texts, which may not have been cleaned.

    Attributes:
        filtered: Rows of `total` that were dropped on purpose, by filters of quality.
    """

    def __init__(self, path: Path, mask: Callable[[str, Counter[str]], str] | None = None) -> None:
        self.path = path
        self.total = 0
        self.filtered = 0
        self._mask = mask
        self.by_reason: Counter[str] = Counter()
        self.examples: list[RejectedRow] = []
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(["file", "row", "column", "reason", "text"])

    def add(self, rows: Iterable[RejectedRow]) -> None:
        """Append rows."""
        for row in rows:
            if self._mask is not None:
                row = replace(row, excerpt=self._mask(row.excerpt, Counter()))
            self._writer.writerow([row.file, row.row, row.column, row.reason, row.excerpt])
            self.total += 1
            self.by_reason[f"{row.column} {row.reason}"] += 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(row)

    def flush(self) -> None:
        """Flush the file to disk."""
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
