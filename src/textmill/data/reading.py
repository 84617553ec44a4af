"""Read CSV, TSV, JSON Lines, Parquet, SQuAD and raw text files in chunks of rows."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from textmill.config.sections.prepare import Format, ReadConfig
from textmill.data import squad
from textmill.data.text import COLUMN, WHOLE, Part, read_documents
from textmill.errors import UserError, did_you_mean, first_line
from textmill.text.rejected_rows import RejectedRow, excerpt

ROWS = 10_000
"""Maximum rows of a chunk."""
CHARACTERS = 4_000_000
"""Approximate maximum characters of a chunk; a longer row is a chunk of its own."""
_LONGEST_FIELD = 1 << 24
"""Maximum characters of a CSV field; a longer one means a quote that was never closed."""

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
TABLE_ENDINGS = tuple(ending for ending, format_ in _FORMATS.items() if format_ != "text")
"""Endings of the names of files with rows and columns."""


class MissingColumnError(UserError):
    """A file lacks a column."""


@dataclass
class RawRows:
    """Rows of a file: the first line of each, their values by column name, and rejected rows."""

    lines: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)


def is_table(path: Path) -> bool:
    """Return whether a file's ending names a format of rows and columns."""
    return path.suffix.lower() in TABLE_ENDINGS


def read_rows(
    path: Path, label: str, config: ReadConfig, wanted: Sequence[str], part: Part = WHOLE
) -> Iterator[RawRows]:
    """Read the columns `wanted` of a file, chunk by chunk; raw text can be read in part.

    A row that cannot be read (invalid UTF-8, a wrong number of fields, invalid JSON) is rejected.
    An empty field of a text file is null. Messages call the file `label`.

    Raises:
        UserError: The file is empty, lacks a column, or does not have its format.
    """
    format_ = config.format or _FORMATS.get(path.suffix.lower())
    if format_ is None:
        fix = f"Set prepare.read.format, or end the name in {', '.join(_FORMATS)}"
        raise UserError(f"unknown format of a file that ends in {path.suffix!r}", where=label, fix=fix)
    if path.stat().st_size == 0:
        raise UserError("the file is empty", where=label)
    if part != WHOLE and format_ != "text":
        fix = "Set it to content: only raw text can be cut by position"
        raise UserError(f"{label} is read as {format_}", where="prepare.splits.by", fix=fix)
    chunks: Iterable[RawRows]
    if format_ == "squad":
        chunks = _read_squad(path, label, wanted)
    elif format_ == "text":
        chunks = _read_text(path, label, config, wanted, part)
    elif format_ == "parquet":
        chunks = _read_parquet(path, label, wanted)
    elif format_ == "jsonl":
        chunks = _read_json_lines(path, label, wanted)
    else:
        chunks = _read_separated(path, label, config, wanted, "\t" if format_ == "tsv" else ",")
    empty = True
    for chunk in chunks:
        empty = empty and not (chunk.lines or chunk.rejected)
        yield chunk
    if empty:
        raise UserError("the file is empty: it has no rows", where=label)


# -- CSV and TSV ----------------------------------------------------------------------------


class _CountedLines:
    """Yield the lines of a file and count their characters."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.characters += len(line)
            yield line


def _read_separated(
    path: Path, label: str, config: ReadConfig, wanted: Sequence[str], delimiter: str
) -> Iterator[RawRows]:
    csv.field_size_limit(_LONGEST_FIELD)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if config.quoted else csv.QUOTE_NONE
    # Invalid UTF-8 becomes lone surrogates, so that only its row is rejected
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _CountedLines(file)
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
        line = 1
        try:
            header = config.header or next(reader, [])
            positions = _positions(header, wanted, label, headerless=config.header is not None)
            expected = range(len(header), sys.maxsize if config.more_fields else len(header) + 1)
            line = reader.line_num + 1
            rows: list[list[str]] = []
            starts: list[int] = []
            read = lines.characters
            for row in reader:
                if row:
                    rows.append(row)
                    starts.append(line)
                line = reader.line_num + 1
                if len(rows) >= ROWS or lines.characters - read >= CHARACTERS:
                    yield _separated_chunk(rows, starts, positions, expected, label)
                    rows, starts, read = [], [], lines.characters
        except csv.Error as error:
            fix = "Close the quote, or set prepare.read.quoted to false if quotes are ordinary characters"
            raise UserError(f"cannot be read as CSV ({error})", where=f"{label}:{line}", fix=fix) from error
        yield _separated_chunk(rows, starts, positions, expected, label)


def _positions(header: Sequence[str], wanted: Sequence[str], label: str, *, headerless: bool) -> dict[str, int]:
    for name in wanted:
        if name not in header:
            raise _missing_column(name, header, label, headerless=headerless)
    return {name: header.index(name) for name in wanted}


def _missing_column(name: str, there: Iterable[str], label: str, *, headerless: bool = False) -> MissingColumnError:
    names = [excerpt(known) for known in there]
    near = did_you_mean(name, names).strip()
    fix = near or "Name one of them in prepare.read.columns"
    if not near and not headerless:
        fix += ", or set prepare.read.header if the file has no header line"
    return MissingColumnError(f"no column {name!r}; there are {', '.join(map(repr, names))}", where=label, fix=fix)


def _separated_chunk(
    rows: list[list[str]], starts: list[int], positions: dict[str, int], expected: range, label: str
) -> RawRows:
    bad: dict[int, str] = {
        index: f"has {len(row)} fields, {expected.start} are expected"
        for index, row in enumerate(rows)
        if len(row) not in expected
    }
    for name, position in positions.items():
        for index in _not_utf8([row[position] if len(row) > position else "" for row in rows]):
            bad.setdefault(index, f"is not UTF-8 in {name!r}")
    rejected = [
        RejectedRow(starts[index], "row", reason, label, excerpt(_printable(" | ".join(rows[index]))))
        for index, reason in sorted(bad.items())
    ]
    if bad:
        starts = [line for index, line in enumerate(starts) if index not in bad]
        rows = [row for index, row in enumerate(rows) if index not in bad]
    columns: dict[str, list[Any]] = {
        name: [row[position] or None for row in rows] for name, position in positions.items()
    }
    return RawRows(starts, columns, rejected)


def _not_utf8(values: list[str]) -> list[int]:
    """Return the positions of the strings with an undecoded byte."""
    if _encodable("".join(values)):
        return []
    return [index for index, value in enumerate(values) if not _encodable(value)]


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    """Return the text with undecoded bytes as hexadecimal escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# -- JSON Lines -----------------------------------------------------------------------------


def _read_json_lines(path: Path, label: str, wanted: Sequence[str]) -> Iterator[RawRows]:
    chunk = _empty(wanted)
    keys: set[str] = set()
    size = 0
    checked = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            size += len(line)
            record = _record(line, number, label, chunk.rejected)
            if record is not None:
                keys.update(record)
                chunk.lines.append(number)
                for name in wanted:
                    chunk.columns[name].append(record.get(name))
            if len(chunk.lines) >= ROWS or size >= CHARACTERS:
                checked = checked or _check_keys(keys, wanted, label)
                yield chunk
                chunk, size = _empty(wanted), 0
    if chunk.lines and not checked:
        _check_keys(keys, wanted, label)
    yield chunk


def _empty(wanted: Sequence[str]) -> RawRows:
    return RawRows(columns={name: [] for name in wanted})


def _record(line: bytes, number: int, label: str, rejected: list[RejectedRow]) -> dict[str, Any] | None:
    """Return the object on a line, or add a rejected row and return None."""
    try:
        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        if not isinstance(record, dict):
            reason = "is not a JSON object"
        elif b"\\ud" in line.lower() and not _encodable(json.dumps(record, ensure_ascii=False)):
            reason = "contains half a surrogate pair"
        else:
            return record
    except UnicodeDecodeError:
        reason = "is not UTF-8"
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON ({str(error).partition(':')[0]})"
    shown = excerpt(line[:1000].decode("utf-8", "backslashreplace"))
    rejected.append(RejectedRow(number, "row", reason, label, shown))
    return None


def _check_keys(keys: set[str], wanted: Sequence[str], label: str) -> bool:
    """Return whether keys are known; raise an error for a column in no object: it is misspelt, not null."""
    for name in wanted:
        if keys and name not in keys:
            raise _missing_column(name, sorted(keys), label, headerless=True)
    return bool(keys)


# -- Parquet --------------------------------------------------------------------------------


def _read_parquet(path: Path, label: str, wanted: Sequence[str]) -> Iterator[RawRows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _positions(file.schema_arrow.names, wanted, label, headerless=True)
            row = 1
            for batch in file.iter_batches(batch_size=ROWS // 4, columns=list(wanted)):
                bad: dict[int, str] = {}
                columns = {name: _cells(batch.column(name), name, bad) for name in wanted}
                good = [index for index in range(batch.num_rows) if index not in bad]
                if bad:
                    columns = {name: [values[index] for index in good] for name, values in columns.items()}
                rejected = [RejectedRow(row + index, "row", reason, label) for index, reason in sorted(bad.items())]
                yield RawRows([row + index for index in good], columns, rejected)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:  # an OSError without a number for a damaged page
        raise UserError(f"cannot be read as Parquet ({first_line(error)})", where=label) from error


def _cells(column: Any, name: str, bad: dict[int, str]) -> list[Any]:
    """Return the values of an Arrow column; add the rows with invalid UTF-8, which Arrow does not check."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        pass
    values: list[Any] = []
    for index, cell in enumerate(column):
        try:
            values.append(cell.as_py())
        except UnicodeDecodeError:
            values.append(None)
            bad.setdefault(index, f"is not UTF-8 in {name!r}")
    return values


# -- SQuAD and raw text ---------------------------------------------------------------------


def _read_squad(path: Path, label: str, wanted: Sequence[str]) -> Iterator[RawRows]:
    _positions(squad.COLUMNS, wanted, label, headerless=True)
    return _chunks(squad.read_questions(path, label), wanted, "context")


def _read_text(path: Path, label: str, config: ReadConfig, wanted: Sequence[str], part: Part) -> Iterator[RawRows]:
    _positions([COLUMN], wanted, label, headerless=True)
    documents = read_documents(path, label, config.text, part)
    rows = ((line, {COLUMN: document} if isinstance(document, str) else document) for line, document in documents)
    return _chunks(rows, wanted, COLUMN)


def _chunks(
    rows: Iterable[tuple[int, Mapping[str, Any] | RejectedRow]], wanted: Sequence[str], long_column: str
) -> Iterator[RawRows]:
    """Collect numbered rows in chunks; `long_column` counts for the size of a chunk."""
    chunk, size = _empty(wanted), 0
    for number, row in rows:
        if isinstance(row, RejectedRow):
            chunk.rejected.append(row)
            continue
        chunk.lines.append(number)
        for name in wanted:
            chunk.columns[name].append(row[name])
        size += len(row[long_column] or "")
        if len(chunk.lines) >= ROWS or size >= CHARACTERS:
            yield chunk
            chunk, size = _empty(wanted), 0
    yield chunk
