"""Read tables, JSON, workbooks and raw text files in chunks of rows."""

from __future__ import annotations

import json
import re
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from textmill.config.sections.prepare import ColumnConfig, ReadConfig
from textmill.data.exports import unpacked
from textmill.data.formats import EmptyFileError, FileFormat, damage_named, detect, open_file, open_text, split_of
from textmill.data.separated import Block, records
from textmill.data.text import COLUMN, WHOLE, Part, read_documents
from textmill.errors import UserError, did_you_mean, first_line
from textmill.text.rejected_rows import RejectedRow, excerpt

ROWS = 10_000
"""Maximum rows of a chunk."""
CHARACTERS = 4_000_000
"""Approximate maximum characters of a chunk; a longer row is a chunk of its own."""


_SURROGATE = re.compile("[\ud800-\udfff]")
AGAIN = " (again)"
"""What `preview` adds to the name of a column that an earlier one has."""


class Bad(NamedTuple):
    """A row that cannot be read: the reason, and what is shown of it."""

    reason: str
    shown: object = ""


class Rows(NamedTuple):
    """Sound rows of one line each, in a row: their values by column name, and the characters of each."""

    columns: Mapping[str, Sequence[Any]]
    sizes: Sequence[int]


Numbered = Iterable[tuple[int, Mapping[str, Any] | Bad | Rows]]
"""Rows with their first line, or with their number in a binary file."""


class MissingColumnError(UserError):
    """A file lacks a column."""


@dataclass
class RawRows:
    """Rows of a file: the first line of each, their values by column name, and rejected rows."""

    lines: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)


@dataclass
class Input:
    """A file to read, its name in messages, options, the wanted columns (none: all), what it is, and a part of it.

    Attributes:
        size: Characters that a reader has read so far; one that does not count them leaves it.
        chunk_start: The size at the start of the chunk.
        chunk_rows: Rows of the chunk so far.
    """

    path: Path
    label: str
    config: ReadConfig
    wanted: Sequence[str]
    found: FileFormat
    part: Part = WHOLE
    size: int = 0
    chunk_start: int = 0
    chunk_rows: int = 0

    def count(self, characters: int) -> None:
        """Count characters that a reader has read."""
        self.size += characters


def read_rows(
    path: Path,
    label: str,
    config: ReadConfig,
    wanted: Sequence[str],
    part: Part = WHOLE,
    found: FileFormat | None = None,
) -> Iterator[RawRows]:
    """Read the columns `wanted` of a file, chunk by chunk; raw text can be read in part.

    A row that cannot be read (invalid bytes, a wrong number of fields, invalid JSON, an open quote) is rejected.
    An empty field of a text file is null. Messages call the file `label`. `found` is the result of `detect`.

    Raises:
        UserError: The file is empty, lacks a column, or does not have its format.
    """
    found = found or detect(path, label, config, wanted)
    file = Input(path, label, config, wanted, found, part)
    chunk, empty = RawRows(), True
    uncounted = found.format in ("json", "parquet", "arrow", "excel")
    with damage_named(label, found.format.capitalize()):
        for number, row in chain(_pieces(file), [(0, None)]):
            if isinstance(row, Rows):
                chunk.lines.extend(range(number, number + len(row.sizes)))
                for name in wanted:
                    chunk.columns.setdefault(name, []).extend(row.columns[name])
            elif isinstance(row, Bad):
                chunk.rejected.append(RejectedRow(number, "row", row.reason, label, excerpt(_printable(row.shown))))
            elif row is not None:
                chunk.lines.append(number)
                for name, value in zip(wanted, row, strict=True):
                    chunk.columns.setdefault(name, []).append(value)
                    file.size += len(value) if uncounted and type(value) is str else 0
            full = max(len(chunk.lines), len(chunk.rejected)) >= ROWS or file.size - file.chunk_start >= CHARACTERS
            if row is None or full:
                empty = empty and not (chunk.lines or chunk.rejected)
                yield RawRows(chunk.lines, {name: chunk.columns.get(name, []) for name in wanted}, chunk.rejected)
                chunk, file.chunk_start = RawRows(), file.size
            file.chunk_rows = len(chunk.lines)
    if empty:
        raise EmptyFileError("the file is empty: it has no rows", where=label)


def _pieces(file: Input) -> Iterator[tuple[int, list[Any] | Bad | Rows]]:
    """Yield what `_selected` does, cut so that a chunk ends where it would end if the rows were read one by one."""
    for number, row in _selected(file):
        if not isinstance(row, Rows):
            yield number, row
            continue
        ends = list(accumulate(row.sizes, initial=file.size))
        done = 0
        while done < len(row.sizes):
            full = bisect_left(ends, file.chunk_start + CHARACTERS)
            end = min(done + ROWS - file.chunk_rows, max(done + 1, full), len(row.sizes))
            file.size = ends[end]
            piece = {name: values[done:end] for name, values in row.columns.items()}
            yield number + done, Rows(piece, row.sizes[done:end])
            done = end


def preview(path: Path, label: str, config: ReadConfig, found: FileFormat, rows: int) -> list[Mapping[str, Any] | Bad]:
    """Return the first rows of a file with all columns."""
    with damage_named(label, found.format.capitalize()):
        first = islice(_READERS[found.format](Input(path, label, config, (), found)), rows)
        return [Bad("is not " + _code(found)) if _broken(row) else row for _, row in first if not isinstance(row, Rows)]


def _broken(row: Mapping[str, Any] | Bad) -> bool:
    return isinstance(row, dict) and any(map(_undecoded, row.values()))


def _code(found: FileFormat) -> str:
    return found.encoding.upper().removesuffix("-SIG") or "UTF-8"


def _selected(file: Input) -> Iterator[tuple[int, list[Any] | Bad | Rows]]:
    """Yield the wanted values of each row; raise an error for a column in no row: it is misspelt, not null."""
    wanted, found = file.wanted, file.found
    if file.part != WHOLE and (found.format != "text" or found.compression or not found.encoding.startswith("utf-8")):
        fix = "Set it to content: only raw text in UTF-8 can be cut by position"
        raise UserError(f"{file.label} is read as {found}", where="prepare.splits.by", fix=fix)
    getters = {name: _getter(name) for name in wanted}
    missing, there, count = set(wanted), dict[str, None](), 0
    for number, row in _READERS[found.format](file):
        if isinstance(row, Bad | Rows):
            missing = set() if isinstance(row, Rows) else missing  # a block has all columns
            yield number, row
            continue
        values, count = [get(row) for get in getters.values()], count + 1
        if missing:
            there.update(dict.fromkeys(row))
            missing -= {name for name, value in zip(wanted, values, strict=True) if value is not None or name in row}
            if missing and count == ROWS:
                break
        broken = next((name for name, value in zip(wanted, values, strict=True) if _undecoded(value)), None)
        reason = f"is not {_code(found)} in {broken!r}"
        yield number, Bad(reason, " | ".join(str(value) for value in values)) if broken else values
    if there and missing:
        raise missing_column(next(name for name in wanted if name in missing), there, file.label, file.config)


def missing_column(name: str, there: Iterable[str], label: str, config: ReadConfig) -> MissingColumnError:
    """Return the error of a column that a file lacks."""
    names = [excerpt(known) for known in there]
    near = did_you_mean(name, [known for known in names if name not in re.split(r"\W+", known)]).strip()
    fix = near or "Name one of them in prepare.read.columns"
    fix += "" if near or config.header else ", or set prepare.read.header if the file has no header line"
    return MissingColumnError(f"no column {name!r}; there are {', '.join(map(repr, names))}", where=label, fix=fix)


def _undecoded(value: Any) -> bool:
    """Return whether a string has a lone surrogate, or bytes are not UTF-8."""
    if isinstance(value, UnicodeDecodeError):
        return True
    return type(value) is str and not value.isascii() and _SURROGATE.search(value) is not None


def _printable(value: object) -> str:
    """Return a value with undecoded bytes as hexadecimal escapes."""
    return str(value)[:1000].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _getter(name: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return a function that looks up a column: the key of that name, else the path of a nested value."""
    parts = [part for part in re.split(r"[.\[\]]+", name) if part]

    def get(record: Mapping[str, Any]) -> Any:
        if name in record or len(parts) == 1:
            return record.get(name)
        value: Any = record
        for part in parts:
            if isinstance(value, list) and part.isdigit():
                value = dict(enumerate(value)).get(int(part))
            else:
                value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return get


# -- Formats --------------------------------------------------------------------------------


def _read_separated(file: Input) -> Numbered:
    with open_text(file.path, file.found.encoding) as text:
        rows = records(text, file.found.dialect, file.count if file.wanted else None)
        yield from _named(rows if file.config.header else islice(rows, file.found.dialect.above, None), file)


def _named(rows: Iterable[tuple[int, Any]], file: Input) -> Numbered:
    """Give the cells of lists and blocks the names of the header, or those of the first list; records have their own.

    Anything else is rejected.
    """
    header, objects = file.config.header or list(file.found.names) or None, False
    for first, found in rows:
        if isinstance(found, Block) and header is not None and (block := _rows(found, header, file.wanted)):
            yield first, block
            continue
        for number, row in _singly(first, found, file) if isinstance(found, Block) else [(first, found)]:
            if isinstance(row, tuple):
                yield number, Bad(*row)
            elif isinstance(row, dict):
                record, objects = unpacked(row), True
                yield number, Bad(record, row.get("text")) if isinstance(record, str) else record
            elif not isinstance(row, list) or objects:
                yield number, Bad("is not a JSON object", row)
            elif header is None and any(isinstance(cell, list | dict) for cell in row):  # no names
                header = [f"column_{place}" for place in range(1, len(row) + 1)]
                yield number, dict(zip(header, row, strict=True))
            elif header is None:
                header = None if number == 1 and re.fullmatch("sep=.?", str(row[0])) else _header(row, file)
            elif row[-1:] == header[-1:] and [str(cell).strip("\ufeff ") for cell in row] == header:
                yield number, Bad("repeats the header", row)
            elif len(row) < len(header) or (not file.config.more_fields and any(map(_is_given, row[len(header) :]))):
                shown = " | ".join(map(str, row))
                yield number, Bad(f"has {len(row)} fields, {len(header)} are expected", shown)
            else:
                cells = (cell if _is_given(cell) else None for cell in row)
                yield number, dict(zip(header, cells, strict=False))


def _is_given(cell: Any) -> bool:
    return cell is not None and cell != ""


def _rows(block: Block, header: Sequence[str], wanted: Sequence[str]) -> Rows | None:
    """Return the wanted columns of a block; None if a row must be looked at by itself."""
    index = {name: position for position, name in enumerate(header)}
    if not index.keys() >= set(wanted) or set(map(len, block.rows)) != {len(header)}:
        return None
    if [*header] in block.rows or ["\ufeff" + header[0], *header[1:]] in block.rows:  # where files were joined
        return None
    columns = {}
    for name in wanted:
        position = index[name]
        values = [row[position] for row in block.rows]
        if _undecoded("".join(values)):
            return None
        columns[name] = values if all(values) else [value or None for value in values]
    return Rows(columns, block.sizes)


def _singly(first: int, block: Block, file: Input) -> Iterator[tuple[int, list[str]]]:
    for offset, (row, size) in enumerate(zip(block.rows, block.sizes, strict=True)):
        file.count(size)
        yield first + offset, row


def _header(row: Iterable[Any], file: Input) -> list[str]:
    header = ["" if name is None else str(name).strip() for name in row]
    if not file.wanted:
        return [name + AGAIN if name and name in header[:place] else name for place, name in enumerate(header)]
    for name in file.wanted:
        if header.count(name) > 1:
            fix = "Rename one of them, or set prepare.read.header"
            raise UserError(f"two columns are named {name!r}", where=file.label, fix=fix)
        if header and name not in header and re.split(r"[.\[]", name)[0] not in header:
            raise missing_column(name, header, file.label, file.config)
    return header


def _read_json_lines(file: Input) -> Numbered:
    def lines() -> Iterator[tuple[int, Any]]:
        with open_text(file.path, file.found.encoding.removesuffix("-sig"), newline="\n") as text:
            for number, line in enumerate(text, start=1):
                if line.strip():
                    file.size += len(line) if line.isascii() else len(line.encode("utf-8", "replace"))
                    yield number, _record(line.removeprefix("\ufeff"))

    return _named(lines(), file)


def _record(line: str) -> Any:
    if _undecoded(line):
        return Bad("is not UTF-8", line)
    try:
        record = json.loads(line)
        halved = "\\ud" in line.lower() and _undecoded(json.dumps(record, ensure_ascii=False))
        if halved or not isinstance(record, dict | list):
            return Bad("contains half a surrogate pair" if halved else "is not a JSON object", line)
        return record
    except (ValueError, RecursionError) as error:
        return Bad(f"is not JSON ({str(error).partition(':')[0]})", line)


def _read_json(file: Input) -> Numbered:
    return _named(_items(file), file)


def _items(file: Input) -> Iterator[tuple[int, Any]]:
    import ijson

    number = 0
    around, star = file.found.records.removesuffix("*").strip("."), file.found.records.endswith("*")
    with damage_named(file.label, "JSON"):
        try:
            with open_text(file.path, file.found.encoding) as text:
                events = ijson.parse(_Utf8(text), multiple_values=True)
                if star:
                    lists = (prefix.rpartition(".") for prefix, event, _ in events if event == "start_array")
                    names = [name for before, _, name in lists if before == around]
                    places = [(f"{around}.{name}.item".lstrip("."), list[str](), {"split": name}) for name in names]
                else:
                    places = [(*_list_of(events, file.found.records), {})]
            for prefix, inner, more in places:
                with open_text(file.path, file.found.encoding) as text:
                    for value in ijson.items(_Utf8(text), prefix, use_float=True, multiple_values=True):
                        for row in _exploded(value, inner):
                            number += 1
                            yield number, row | more if isinstance(row, dict) else row
        except (ijson.JSONError, UnicodeDecodeError) as error:
            fix = "Correct or save it again; JSON has null, and no NaN"
            what = f"is not JSON behind row {number} ({first_line(error)})"
            raise UserError(what, where=file.label, fix=fix) from error
    if number == 0:
        kind = "articles under 'data'" if file.found.format == "squad" else f"rows at {file.found.records!r}"
        advice = "Set prepare.read.records to the path of the rows" if file.found.format == "json" else None
        raise UserError(f"there is no list of {kind}, or it has no rows", where=file.label, fix=advice)


def _read_yaml(file: Input) -> Numbered:
    """Read a list of mappings or lists, or the longest list of a mapping; all values are texts, as written."""
    import yaml

    try:
        with open_text(file.path, file.found.encoding) as text:
            # The base loader makes texts, lists and mappings only
            value = yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))  # nosec B506
    except yaml.YAMLError as error:
        raise UserError(f"is not YAML ({' '.join(str(error).split())})", where=file.label) from error
    for name in filter(None, file.found.records.split(".")):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, dict):
        value = max((rows for rows in value.values() if isinstance(rows, list)), key=len, default=None)
    if not isinstance(value, list):
        fix = "Write a list of mappings, or set prepare.read.records to its path"
        raise UserError("is YAML without a list of rows", where=file.label, fix=fix)
    return _named(enumerate(value, start=1), file)


def _read_xml(file: Input) -> Numbered:
    """Read the elements below the root, or those at `records`: their attributes and their elements are the columns."""
    import pandas as pd

    path = f".//{file.found.records.replace('.', '/')}" if file.found.records else "./*"
    try:
        with open_file(file.path) as raw:
            frame = pd.read_xml(raw, xpath=path, dtype=str, parser="etree")
    except (ValueError, SyntaxError) as error:  # of ElementTree too
        fix = "Set prepare.read.records to the name of the rows' elements"
        raise UserError(f"is XML without rows ({first_line(error)})", where=file.label, fix=fix) from error
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return ((number, {str(name): cell for name, cell in row.items()}) for number, row in enumerate(rows, start=1))


def _list_of(events: Iterable[tuple[str, str, Any]], records: str) -> tuple[str, list[str]]:
    """Return the prefix of the items of the first list on the way to the rows, and the rest of that way."""
    place, *inner = ["", *records.split(".")] if records else [""]
    for prefix, event, _ in events:
        if prefix == place and event == "start_array":
            return f"{place}.item".lstrip("."), inner
        if prefix == place and event == "start_map" and inner:
            place = f"{place}.{inner.pop(0)}".lstrip(".")
    return place, inner


class _Utf8:
    """A text file as the bytes of UTF-8, which ijson reads."""

    def __init__(self, text: TextIO) -> None:
        self._text = text

    def read(self, size: int = -1) -> bytes:
        """Read so many characters; a byte that was not decoded stays as it is."""
        return self._text.read(size).encode("utf-8", "surrogateescape")


def _exploded(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yield the records of a nested list, each with the values of those around it."""
    if not path or not isinstance(value, dict):
        yield value
        return
    for inner in value.get(path[0]) or []:
        for row in _exploded(inner, path[1:]):
            around = {name: cell for name, cell in value.items() if name != path[0]}
            yield {**around, **row} if isinstance(row, dict) else row


def _read_squad(file: Input) -> Numbered:
    """Read questions in the format of SQuAD (Rajpurkar et al. 2016, 2018): one without an answer has an empty list."""
    for number, row in _read_json(file):
        if isinstance(row, Bad | Rows) or not isinstance(row.get("answers", []), list):
            yield number, Bad("is not a SQuAD question", row)
        else:
            file.size += len(row.get("context") or "")
            texts = {name: str(row[name]) if row.get(name) not in (None, "") else None for name in _SQUAD_TEXTS}
            yield number, {**texts, "answers": [] if row.get("is_impossible") else row.get("answers", [])}


_SQUAD_TEXTS = ("id", "title", "question", "context")


def _read_batches(file: Input) -> Numbered:
    """Read Parquet, and Arrow as a file or as a stream."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader: Any
    with pa.memory_map(str(file.path)) as source:
        if file.found.format == "parquet":
            reader = pq.ParquetFile(source)
            names = reader.schema_arrow.names
            _header(names, file)
            used = [name for name in names if any(re.split(r"[.\[]", want)[0] in (name, want) for want in file.wanted)]
            batches = reader.iter_batches(ROWS // 4, columns=[*{*used, *(set(names) & set(file.wanted))}] or None)
        elif source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            _header(reader.schema.names, file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            source.seek(0)
            batches = pa.ipc.open_stream(source)
        number = 0
        classes: dict[str, list[str]] | None = None
        for batch in batches:
            classes = _class_names(batch.schema, file.config) if classes is None else classes
            columns = {name: _cells(batch.column(name), classes.get(name)) for name in batch.schema.names}
            for values in zip(*columns.values(), strict=True):
                number += 1
                yield number, dict(zip(columns, values, strict=True))


def _class_names(schema: Any, config: ReadConfig) -> dict[str, list[str]]:
    """Return the names of the numbers of columns, as `datasets` writes them, except where the user names them."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    own = {column.source for column in config.columns.values() if isinstance(column, ColumnConfig) and column.names}
    found = {name: feature.get("feature", feature) for name, feature in features.items() if isinstance(feature, dict)}
    named = {name: inner["names"] for name, inner in found.items() if isinstance(inner, dict) and inner.get("names")}
    return {name: names for name, names in named.items() if name not in own}


def _cells(column: Any, names: Sequence[str] | None = None) -> list[Any]:
    """Return the values of an Arrow column; bytes are decoded, and the error stands for a cell that is not UTF-8.

    Numbers of classes become their `names`; -1 is no class.
    """
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast("binary").to_pylist()
    if names is not None:
        known = dict(enumerate(names))
        return [[*map(known.get, value)] if isinstance(value, list) else known.get(value) for value in values]
    return [_decoded(value) if type(value) is bytes else value for value in values]


def _decoded(value: bytes) -> str | UnicodeDecodeError:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        return error


def _read_workbook(file: Input) -> Numbered:
    """Read the named sheet, those named as splits, or the first with rows; its header is the row with most names."""
    import python_calamine as calamine

    try:
        with open_file(file.path) as raw:
            book = calamine.CalamineWorkbook.from_filelike(raw)
        names = [file.config.sheet] if file.config.sheet else book.sheet_names
        if not set(names) <= set(book.sheet_names):
            fix = f"There are {', '.join(map(repr, book.sheet_names))}"
            raise UserError(f"no sheet {file.config.sheet!r}", where=file.label, fix=fix)
        splits = [name for name in names if split_of(name)]
        several = len(splits) > 1 and "train" in map(split_of, splits)
        sheets = {name: book.get_sheet_by_name(name).to_python(skip_empty_area=False) for name in names}
    except (calamine.CalamineError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"cannot be read as a workbook ({first_line(error)})", where=file.label) from error
    filled = {name: rows for name, rows in sheets.items() if any(cell != "" for row in rows for cell in row)}
    table = next((name for name, rows in filled.items() if _is_table(rows)), next(iter(filled), None))  # not a cover
    before = 0
    inner = replace(file, wanted=[name for name in file.wanted if not several or name != "split"])
    for name in splits if several else [name for name in [table] if name]:
        rows = sheets[name]
        counts = [sum(cell != "" for cell in row) for row in rows[:20]]
        top = counts.index(max(counts)) if counts and file.config.header is None else 0
        given = ((number, row) for number, row in enumerate(rows[top:], top + 1) if any(cell != "" for cell in row))
        for number, row in _named(given, inner):
            yield before + number, {**row, "split": name} if several and isinstance(row, dict) else row
        before += len(rows)


def _is_table(rows: Sequence[Sequence[Any]]) -> bool:
    """Return whether at least two rows have two cells."""
    return len([row for row in rows if len([cell for cell in row if cell != ""]) > 1]) > 1


_LABELLED = re.compile(r"\s*((?:__label__\S+[\s,]*)*)(.*)", re.DOTALL)


def _read_fasttext(file: Input) -> Numbered:
    """Read lines of fastText (Joulin et al. 2017): labels behind `__label__`, then a text."""
    with open_text(file.path, file.found.encoding, newline="\n") as text:
        for number, line in enumerate(text, start=1):
            labels, rest = _LABELLED.findall(line.removeprefix("\ufeff"))[0]
            if line.strip():
                file.size += len(line)
                names = [label.removeprefix("__label__").rstrip(",") for label in labels.split() if label != ","]
                yield number, {"label": names, COLUMN: rest.strip() or None}


def _read_text(file: Input) -> Numbered:
    for line, document in read_documents(file.path, file.label, file.config.text, file.part, file.found.encoding):
        if isinstance(document, RejectedRow):
            yield line, Bad(document.reason, document.excerpt)
        else:
            file.size += len(document)
            yield line, {COLUMN: document}


_READERS: dict[str, Callable[[Input], Numbered]] = {
    "csv": _read_separated,
    "tsv": _read_separated,
    "jsonl": _read_json_lines,
    "json": _read_json,
    "yaml": _read_yaml,
    "xml": _read_xml,
    "squad": _read_squad,
    "parquet": _read_batches,
    "arrow": _read_batches,
    "excel": _read_workbook,
    "text": _read_text,
    "fasttext": _read_fasttext,
}
