"""Detect separator and quotes of a CSV, and read its records by line."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any, NamedTuple

from textmill.config.sections.prepare import ReadConfig

ONE_COLUMN = "\x1f"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", "^": "carets", "~": "tildes"}
_SEPARATORS |= {":": "colons", ONE_COLUMN: "nothing"}
_OPEN = "has a quote that is not closed, or text behind the closing one"
_FEW = 3
_LEARNED = 1000
_LONGEST_FIELD = 1 << 24
"""Maximum characters of a field."""
_LONGEST_RECORD = 10_000
"""Maximum lines of a record."""
_ABOVE = 20
"""Maximum lines of a title or comment above the header."""
_CHARACTERS_AT_ONCE = 500_000


class Block(NamedTuple):
    """Records of one line each, in a row: their fields, and the characters of each line."""

    rows: list[list[str]]
    sizes: list[int]


@dataclass(frozen=True)
class Dialect:
    """How fields are separated and quoted.

    Attributes:
        separator: Sign between fields.
        quoted: Whether quotes enclose a field.
        quote: The quote, a double or a single one.
        escape: Sign before a quote inside of quotes; None for a doubled quote.
        spaced: Whether spaces may stand before a quote that opens a field.
        above: Records above the header: titles and comments of one field.
    """

    separator: str
    quoted: bool = True
    quote: str = '"'
    escape: str | None = None
    spaced: bool = False
    above: int = 0

    def __str__(self) -> str:
        """Describe it for the data report."""
        quotes = "" if self.quoted else ", quotes are ordinary signs"
        quotes = ", in single quotes" if self.quote == "'" else quotes
        quotes += ", backslashes before quotes" if self.escape else ""
        return f"separated by {_SEPARATORS.get(self.separator, repr(self.separator))}{quotes}"


def dialect_of(lines: Sequence[str], usual: str, config: ReadConfig, wanted: Iterable[str]) -> Dialect:
    """Return the dialect of a file by its first lines; configured values come first.

    A separator that gives the `wanted` or configured columns is right; of several the `usual` one, else clevercsv's.
    """
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    comments = len(list(takewhile(lambda line: line.startswith("# "), lines[start:])))
    lines = lines[start + comments :]
    quote = _quote(lines)
    separator = config.separator or _separator(lines, usual, config.header, set(wanted), quote)
    sign = re.escape(separator)
    spaced = len(re.findall(f"{sign} +{quote}", "".join(lines))) > len(re.findall(sign + quote, "".join(lines)))
    found = Dialect(separator, quote=quote, spaced=spaced, above=comments + _above(lines, separator, quote))
    if config.quoted is not None or not any(quote in line for line in lines):
        return replace(found, quoted=config.quoted is not False)
    ways = [found, replace(found, escape="\\"), replace(found, quoted=False)]
    failed = [sum(isinstance(row, tuple) for _, row in records(lines, way)) for way in ways]
    if failed[1] < failed[0] and any(f"\\{quote}" in line for line in lines):
        return ways[1]
    return ways[2] if failed[0] > max(_FEW, _enclosed(lines, quote, sign)) else found


def _enclosed(lines: Sequence[str], quote: str, signs: str) -> int:
    """Return how many fields between separators are enclosed in quotes."""
    inside = rf"(?:[^{quote}\\]|{quote}{quote}|\\.)*"
    return sum(len(re.findall(rf"(?:^|{signs}){quote}{inside}{quote}(?={signs}|\r?\n?$)", line)) for line in lines)


def _quote(lines: Sequence[str]) -> str:
    """Return the quote that encloses fields: a single one if it does in most lines, and double ones in fewer."""
    single, double = (_enclosed(lines, quote, "[,;:|\t]") for quote in ("'", '"'))
    return "'" if single > max(double, len(lines) / 2) else '"'


def _separator(lines: Sequence[str], usual: str, header: Sequence[str] | None, wanted: set[str], quote: str) -> str:
    first = next(_headers(lines, quote), "")
    if named := re.fullmatch(r"sep=(.)\s*", first):  # as Excel writes it
        return named[1]
    usually = [sign for sign in _SEPARATORS if sign != ":"]  # which texts have too
    lined = (line for line in islice(_headers(lines, quote), _ABOVE) if any(sign in line for sign in usually))
    first = next(lined, first if re.fullmatch(r"\W?\w+\W?(:\W?\w+\W?)+\s*", first) else "")
    if not first:
        return ONE_COLUMN
    for sign in dict.fromkeys((usual, *_SEPARATORS)):
        fields = next(csv.reader(first.splitlines(keepends=True), delimiter=sign, quotechar=quote), [])
        if len(fields) >= len(header) > 1 if header else wanted and wanted <= {name.strip() for name in fields}:
            return sign
    from clevercsv.detect import Detector

    signs = [sign for sign in usually if sign in first] or [":"]
    dialect = Detector().detect("".join(lines[:100]).replace("\0", ""), delimiters=signs)
    likely = dialect.delimiter if dialect and dialect.delimiter in signs else signs[0]
    widths = Counter(len(row) for row in csv.reader(lines, delimiter=likely, quotechar=quote))
    return likely if widths and widths.most_common(1)[0][1] > 0.7 * widths.total() else ONE_COLUMN


def _headers(lines: Sequence[str], quote: str) -> Iterator[str]:
    """Yield lines that may be the header; one with an open quote goes on in the next lines."""
    whole = ""
    for line in lines:
        whole += line
        if whole.count(quote) % 2 == 0 or whole.count("\n") > _ABOVE:
            yield whole
            whole = ""


def _above(lines: Sequence[str], separator: str, quote: str) -> int:
    """Return how many records stand above the header: they have one field, or only the first one of three or more."""
    rows = [row for row in csv.reader(lines, delimiter=separator, quotechar=quote) if row]
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    titles = takewhile(lambda row: len(row) == 1 < width or (width > 2 and row[0] and not any(row[1:])), rows[:_ABOVE])
    count = len(list(titles))
    return count if count < min(_ABOVE, len(rows)) else 0


def records(
    lines: Iterable[str], how: Dialect, read: Callable[[int], object] | None = None
) -> Iterator[tuple[int, list[str] | tuple[str, str] | Block]]:
    """Yield each record with its first line number: its fields, or why this line is rejected and the line.

    A quote that is not closed, or far below only, would swallow other rows: its line is rejected, and reading goes
    on with the next one. It shows by text behind a closing quote, by the file's end, by too many lines, or by lines
    of the record that are rows themselves.

    With `read`, which is told of the characters read outside of blocks, lines that are records are yielded in blocks.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    source, again, taken, done, above = iter(lines), list[str](), list[str](), 0, how.above
    learned: list[list[str]] = []

    def feed() -> Iterator[str]:
        while (line := again.pop() if again else next(source, None)) is not None:
            taken.append(line)
            if len(taken) > _LONGEST_RECORD:
                raise csv.Error("a record of too many lines")
            yield line

    options: dict[str, Any] = {"delimiter": how.separator, "strict": how.quoted, "escapechar": how.escape}
    options |= {"quoting": csv.QUOTE_MINIMAL if how.quoted else csv.QUOTE_NONE, "doublequote": how.escape is None}
    options |= {"skipinitialspace": how.spaced, "quotechar": how.quote}
    while True:
        if read is not None and learned and not again:
            some = _some(source)
            if (block := _block(some, options)) is not None:
                learned += block.rows[: _LEARNED - len(learned)]
                yield done + 1, block
                done += len(some)
                continue
            again = some[::-1]
        try:
            for row in csv.reader(feed(), **options):
                if len(taken) > 1 and _swallows(taken, learned, how):
                    raise csv.Error("rows inside of a field")
                if row and above:
                    above -= 1
                elif len(learned) < _LEARNED and row:
                    learned.append(row)
                if read is not None:
                    read(sum(map(len, taken)))
                if row:
                    yield done + 1, row
                done += len(taken)
                taken.clear()
                if read is not None and learned and not again:
                    break
            else:
                return
        except csv.Error as error:
            reason = "is too long" if len(taken) == 1 and "field larger" in str(error) else _OPEN
            row = []
            if len(taken) == 1 and reason == _OPEN and taken[0].count(how.quote) % 2 == 0:
                # A line such as `"Nice" is not the word,bad` is a row: its writer does not enclose fields in quotes
                row = next(csv.reader(taken, delimiter=how.separator, quoting=csv.QUOTE_NONE), [])
            if read is not None:
                read(len(taken[0]))
            yield done + 1, row if learned and len(row) == len(learned[0]) else (reason, taken[0])
            done += 1
            again += taken[:0:-1]
            taken.clear()


def _some(source: Iterator[str]) -> list[str]:
    """Return the next lines, of about `_CHARACTERS_AT_ONCE` characters."""
    lines, size = list[str](), 0
    for line in source:
        lines.append(line)
        size += len(line)
        if size >= _CHARACTERS_AT_ONCE:
            break
    return lines


def _block(lines: list[str], options: dict[str, Any]) -> Block | None:
    """Return the records of lines, or None if a line is not one record, is empty, or there are none."""
    try:
        rows = list(csv.reader(lines, **options))
    except csv.Error:
        return None
    return Block(rows, list(map(len, lines))) if rows and len(rows) == len(lines) and all(rows) else None


def _swallows(lines: Sequence[str], learned: Sequence[Sequence[str]], how: Dialect) -> bool:
    """Return whether lines of one record are rows themselves; one line of an honest record may look like one.

    A row has the header's width and known values in the columns with few of them. Without such columns, nearly all
    lines must have that width.
    """
    if not learned or len(learned[0]) < 2:
        return False
    rows = [row for row in learned[1:] if len(row) == len(learned[0])]
    few = {
        index: values for index, values in enumerate(map(set, zip(*rows, strict=True))) if len(values) * 4 < len(rows)
    }

    def is_row(line: str) -> bool:
        row = next(csv.reader([line], delimiter=how.separator, quotechar=how.quote), [])
        return len(row) == len(learned[0]) and all(
            row[index].strip(how.quote + "\r\n") in values for index, values in few.items()
        )

    alike = sum(map(is_row, lines))
    return alike > 1 if few else alike >= max(_FEW, len(lines) - 1)
