"""What columns of data files hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from textmill.text.numbers import Decimal

Kind = Literal["text", "label", "labels", "number", "messages", "words", "tags", "spans", "id", "other"]


@dataclass(frozen=True)
class Column:
    """A column of the files.

    Attributes:
        name: Its name, or the path of a nested value.
        kind: What its values are.
        filled: Share of rows with a value.
        distinct: Number of different values.
        words: Mean words of a value; of Chinese, Japanese and Korean, half of the characters.
        longest: Characters that 99 % of the values do not exceed.
        example: The first value.
        counts: Rows of each value, of a column of labels.
        separator: Sign between several labels of a cell.
        decimal: Decimal sign of numbers, where some would be read in two ways.
        language: Language of most texts, by its ISO 639-1 code; empty if none prevails.
    """

    name: str
    kind: Kind
    filled: float
    distinct: int
    words: float
    longest: int
    example: str
    counts: Counter[str] = field(default_factory=Counter)
    separator: str = ""
    decimal: Decimal | None = None
    language: str = ""


@dataclass(frozen=True)
class Seen:
    """What stands in the files.

    Attributes:
        files: Split -> its files, as the source names them.
        found: Format of the first file, a `FileFormat`.
        header: Names of the columns, if the files have no header line.
        columns: The columns, in their order.
        rows: Rows that were looked at.
        whole: Whether these are all rows.
        rejected: Why some of these rows cannot be read -> their number.
        size: Bytes of all files.
        folders: Whether the folders of the files are the labels.
        texts: Some texts.
        split_column: The column that names the split of each row.
        file_column: Name of a column for the names of the files, which tell the splits.
    """

    files: dict[str, list[str]]
    found: Any
    header: list[str] | None
    columns: list[Column]
    rows: int
    whole: bool
    rejected: Counter[str]
    size: int
    folders: bool = False
    texts: list[str] = field(default_factory=list)
    split_column: Column | None = None
    file_column: str | None = None

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """Return the columns of some kinds."""
        return [column for column in self.columns if column.kind in kinds]
