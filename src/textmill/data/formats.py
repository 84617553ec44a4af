"""Detect compression, format and encoding of a file, and open it for reading."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from textmill.config.sections.prepare import Format, ReadConfig, TextConfig
from textmill.data.separated import ONE_COLUMN, Dialect, dialect_of
from textmill.errors import UserError, first_line
from textmill.fetching.sources.files import is_workbook

_FORMATS: dict[str, Format] = {
    **dict.fromkeys((".csv", ".psv"), "csv"),
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".json": "json",
    **dict.fromkeys((".yaml", ".yml"), "yaml"),
    ".xml": "xml",
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), "excel"),
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), "text"),
}
TABLE_ENDINGS = tuple(ending for ending, format_ in _FORMATS.items() if format_ != "text")
"""Endings of the names of files with rows and columns."""
_MAGIC: dict[bytes, Format] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xd0\xcf\x11\xe0": "excel", b"PK\3\4": "excel"}
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
_PACKED_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".zip")
_SQUAD = "data.paragraphs.qas"
_NAME = re.compile(r"\s*\w{1,20}([ _.#-]\w{1,20}){0,2}\s*")
_MANY = 50
"""Values of one JSON object or list that are no row."""
_SAMPLE = 1 << 17
"""Characters that all but the encoding is detected from."""
_FEW = 3
_PIECE = 2000
_NAMED = 1000
"""Lines that name an encoding."""
_SCANNED = 1 << 26
"""Bytes that the encoding is detected from."""


_SPLITS = {
    "train": r"train(ing)?",
    "validation": r"(dev|val|valid|validation|development)",
    "test": r"(test|testing|holdout)",
}


class EmptyFileError(UserError):
    """A file has no rows."""


@dataclass(frozen=True)
class FileFormat:
    """What a file is.

    Attributes:
        format: Its format.
        compression: Name of its compression, or None.
        encoding: Encoding of a text format; empty for a binary one.
        dialect: Separator and quotes of a CSV or TSV.
        records: Path of the list of rows in a JSON file.
        sheets: Names of the sheets of a workbook that has several, of which one is read.
        lists: Whether rows are lists, the first of which may name the columns.
        names: Names of the columns that stand beside the rows of a JSON object.
    """

    format: Format
    compression: str | None = None
    encoding: str = ""
    dialect: Dialect = field(default_factory=lambda: Dialect(ONE_COLUMN))
    records: str = ""
    sheets: tuple[str, ...] = ()
    lists: bool = False
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Describe it for the data report."""
        parts = [self.format, str(self.dialect) if self.format in ("csv", "tsv") else "", self.encoding]
        parts += [f"rows at {self.records!r}" if self.records else "", self.compression or ""]
        named = f"sheets {', '.join(map(repr, self.sheets))}"
        parts += [named if _tell_splits(self.sheets) else f"the first table of the {named}"] if self.sheets else []
        return ", ".join(filter(None, parts))


def ending(name: str) -> str:
    """Return the ending of a file's name in lower case, without that of a compression."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in _PACKED_ENDINGS else path.suffix


def is_table(path: Path) -> bool:
    """Return whether a file has rows and columns, by the ending of its name or its first bytes."""
    if ending(path.name) in TABLE_ENDINGS or not path.is_file():
        return ending(path.name) in TABLE_ENDINGS
    with path.open("rb") as file:
        return file.read(8).startswith(tuple(sign for sign, format_ in _MAGIC.items() if format_ != "excel"))


def _compression(path: Path, start: bytes) -> str | None:
    name = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
    return None if name == "zip" and (_FORMATS.get(ending(path.name)) == "excel" or is_workbook(path)) else name


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading; a compressed one is decompressed on the way.

    Raises:
        UserError: A zip file has not exactly one member, or it needs a password.
    """
    with path.open("rb") as file:
        compression = _compression(path, file.read(8))
    if compression == "zstd":
        import pyarrow as pa

        stream: Any = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
        return cast("IO[bytes]", io.BufferedReader(stream))
    if compression == "zip":
        archive = zipfile.ZipFile(path)
        members = [info for info in archive.infolist() if not info.is_dir()]
        if len(members) != 1 or members[0].flag_bits & 1:
            what = f"holds {len(members)} files" if len(members) != 1 else "needs a password"
            raise UserError(f"the zip file {what}", where=path.name, fix="Unpack it and name the files")
        return archive.open(members[0])
    openers: dict[str | None, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return cast("IO[bytes]", openers.get(compression, Path.open)(path, "rb"))


def open_text(path: Path, encoding: str, newline: str = "") -> io.TextIOWrapper:
    """Open a file as text with its own line ends; a byte that cannot be decoded becomes a lone surrogate."""
    return io.TextIOWrapper(open_file(path), encoding=encoding, errors="surrogateescape", newline=newline)


@contextmanager
def damage_named(label: str, kind: str) -> Iterator[None]:
    """Convert the errors of readers and decompressors to one line that names the file `label`."""
    import pyarrow as pa

    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"cannot be unpacked ({first_line(error)})", where=label, fix="Pack the file again") from error
    except (pa.ArrowException, OSError, UnicodeError) as error:  # an OSError without a number for a damaged page
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(f"cannot be read as {kind} ({first_line(error)})", where=label) from error


def detect(path: Path, label: str, config: ReadConfig, wanted: Sequence[str] = ()) -> FileFormat:
    """Return what a file is; the configuration's values come before what its content shows.

    Raises:
        UserError: The file, which messages call `label`, is empty, or nothing tells its format.
    """
    if path.stat().st_size == 0:
        raise EmptyFileError("the file is empty", where=label)
    with damage_named(label, "text"):
        return _detected(path, label, config, wanted)


def _detected(path: Path, label: str, config: ReadConfig, wanted: Sequence[str]) -> FileFormat:
    with path.open("rb") as raw, open_file(path) as file:
        compression, start = _compression(path, raw.read(8)), file.read(_SAMPLE)
    magic = next((name for sign, name in _MAGIC.items() if start.startswith(sign)), None)
    format_: Format | None = config.format or magic or _FORMATS.get(ending(path.name))
    if format_ == "excel" and config.format is None and magic is None:  # Excel opens a table or HTML of that ending too
        format_ = None
    if format_ in ("parquet", "arrow", "excel"):
        sheets = _sheets(path) if format_ == "excel" and not config.sheet else ()
        return FileFormat(format_, compression, sheets=sheets, lists=format_ == "excel")
    encoding = config.encoding or encoding_of(path)
    with open_text(path, encoding) as text:
        sample = text.read(_SAMPLE)
    strange = sum(sign < " " and sign not in "\t\n\r\f\v\x1c\x1d\x1e\x1f" for sign in sample.replace("\0", ""))
    strange += sum("\ud800" <= sign <= "\udfff" for sign in sample)
    if strange > max(20, len(sample) // 20):
        fix = "Give a table, JSON or text, or set prepare.read.encoding"
        raise UserError("is not text but a binary file", where=label, fix=fix)
    if config.format is None and (format_ == "json" or _is_json(sample, format_)):
        format_, records, lists, names = _json(sample, config.records, label)
        return FileFormat(format_, compression, encoding, records=records, lists=lists, names=names)
    records = config.records or (_SQUAD if format_ == "squad" else "")
    lines = list(io.StringIO(sample, newline=""))
    lines = lines[:-1] if len(sample) == _SAMPLE and len(lines) > 1 else lines
    if config.format is None and config.text == TextConfig():
        if sum(line.startswith("__label__") for line in lines) > 0.9 * len(lines):
            format_ = "fasttext"
        elif format_ != "text" and sample.lstrip("\ufeff \r\n").startswith("<?xml"):
            format_ = "xml"
        elif format_ == "text":
            format_ = _table_of(lines)
    records = records if format_ in ("json", "squad", "yaml", "xml") else ""
    found = FileFormat(format_ or "csv", compression, encoding, records=records)
    if found.format not in ("csv", "tsv"):
        return found
    roots = (re.split(r"[.\[]", name)[0] if name not in sample.split("\n", 1)[0] else name for name in wanted)
    dialect = dialect_of(lines, "\t" if format_ == "tsv" else ",", config, roots)
    if format_ is None and dialect.separator == ONE_COLUMN:
        fix = f"Set prepare.read.format, or end the name in {', '.join(_FORMATS)}"
        raise UserError(f"unknown format of a file that ends in {path.suffix!r}", where=label, fix=fix)
    return FileFormat(found.format, compression, encoding, dialect, lists=True)


def _sheets(path: Path) -> tuple[str, ...]:
    import python_calamine as calamine

    with suppress(calamine.CalamineError, zipfile.BadZipFile, OSError), open_file(path) as raw:
        names = tuple(calamine.CalamineWorkbook.from_filelike(raw).sheet_names)
        return names if len(names) > 1 else ()
    return ()


def encoding_of(path: Path) -> str:
    """Return the encoding of a text file.

    It is UTF-8 unless more lines are invalid than hold valid signs beyond ASCII: chardet names the encoding of these
    lines then. Fewer than three such lines, or a tenth, are damaged ones. A byte order mark or zero bytes mean UTF-16
    or 32.
    """
    import chardet

    valid = wrong = size = lines = 0
    invalid: list[bytes] = []
    with open_file(path) as file:
        start = file.read(4096)
    marked = start.startswith((b"\xff\xfe", b"\xfe\xff")) and 0 in start  # 0: of a line's end in UTF-16, at least
    if marked or start.startswith(b"\xef\xbb\xbf") or start.count(0) > max(20, len(start) // 4):
        return str(chardet.detect(start)["encoding"] or "utf-8").lower()
    if wide := _utf16(start):
        return wide
    with open_file(path) as file:
        for line in islice(_pieces(file), 1_000_000):
            size, lines = size + len(line), lines + 1
            if not line.isascii():
                try:
                    line.decode()
                    valid += 1
                except UnicodeDecodeError:
                    wrong += 1
                    invalid += [line] if wrong <= _NAMED else []
            if size > _SCANNED:
                break
    if wrong <= valid or wrong < min(_FEW, 1 + lines // 10):
        return "utf-8"
    name = str(chardet.detect(b"".join(invalid))["encoding"] or "cp1252").lower()
    wider = {"iso-8859-1": "cp1252", "gb2312": "gb18030"}.get(name, name)  # each is a part of the other
    return wider if "utf" not in wider and "\n".encode(wider) == b"\n" else "cp1252"


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines; a longer one, such as a whole JSON array, in pieces that end where no sign is cut."""
    while piece := file.readline(_PIECE):
        while piece[-1] > 127 and (more := file.read(1)):
            piece += more
        yield piece


def _utf16(start: bytes) -> str | None:
    """Return the byte order of UTF-16 without a mark, in any script: zeros at even or odd places, and no UTF-8."""
    if start.count(0) < max(2, len(start) // 400):  # of line ends and separators, at least
        return None
    for name in ("utf-8", "utf-16-le", "utf-16-be"):
        zeros = start[1 if name == "utf-16-le" else 0 :: 2].count(0)
        if name == "utf-8" or zeros > 0.9 * start.count(0):
            try:
                text = codecs.getincrementaldecoder(name)().decode(start)
            except UnicodeDecodeError:
                continue
            # Half of the bytes of line ends are none in UTF-16: bytes of text with zeros among them
            return None if name == "utf-8" or 2 * text.count("\n") < start.count(b"\n") else name
    return None


def _table_of(lines: Sequence[str]) -> Format:
    """Return the format of a text file: a table if all lines have as many tabs, or the fields of a header line."""
    lines = [line for line in lines if line.strip()]
    if len(lines) < _FEW:
        return "text"
    if "\t" in lines[0] and len({line.count("\t") for line in lines}) == 1:
        return "tsv"
    for sign in ",;|":
        widths = Counter(len(row) for row in csv.reader(lines, delimiter=sign))
        width, rows = widths.most_common(1)[0]
        names = next(csv.reader(lines[:1], delimiter=sign))
        if len(names) == width > 1 and rows > 0.9 * widths.total() and all(map(_NAME.fullmatch, names)):
            return "csv"
    return "text"


def _is_json(sample: str, format_: Format | None) -> bool:
    """Return whether text is JSON, whatever its name ends in: a header line is no object or list of JSON."""
    start = sample.lstrip("\ufeff \t\r\n")
    if format_ in (None, "jsonl"):
        return start.startswith("[") or (format_ is None and start.startswith("{"))
    try:
        return format_ in ("csv", "tsv", "text") and isinstance(json.loads(start.split("\n", 1)[0]), dict)
    except (ValueError, RecursionError):
        return False


def _json(sample: str, records: str | None, label: str) -> tuple[Format, str, bool, tuple[str, ...]]:
    """Tell JSON Lines, an array, SQuAD and an object with lists apart; return these attributes of `FileFormat`.

    Raises:
        UserError: The object has columns, not rows, as `DataFrame.to_json` writes them.
    """
    lines = [line for line in sample.split("\n", 3) if line.strip()]
    first = [_loaded(line) for line in lines[:2]]
    if records is None and len(first) > 1 and all(isinstance(line, list) for line in first):
        return "jsonl", "", True, ()
    if sample.lstrip("\ufeff \t\r\n").startswith("["):
        return "json", records or "", re.match(r"\W*\[\s*\[", sample) is not None, ()
    if records is None and re.match(r'\s*\{.*?"data"\s*:\s*\[\s*\{.*?"paragraphs"\s*:', sample, re.DOTALL):
        return "squad", _SQUAD, False, ()
    if records is None and len(lines) > 1 and first[0] is not None:
        return "jsonl", "", False, ()
    return "json", *_rows_path(sample, records, label)


def _loaded(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _rows_path(sample: str, records: str | None, label: str) -> tuple[str, bool, tuple[str, ...]]:
    """Return the path of the longest list in the beginning of an object, whether of lists, and names beside it.

    The path ends in `*` for lists that are named as splits, and it is empty if objects follow, the rows.
    """
    import ijson

    values: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    lists: Counter[str] = Counter()
    names: list[str] = []
    objects = 0
    with suppress(ijson.JSONError):
        content = io.BytesIO(sample.encode("utf-8", "surrogateescape"))
        for prefix, event, value in ijson.parse(content, multiple_values=True):
            objects += event == "start_map" and not prefix
            if objects > 1:
                return records or "", False, ()
            names += [value] if prefix == "columns.item" and event == "string" else []
            if event in ("start_map", "start_array") and re.fullmatch(r"(?:(?!item\.)[^.]+\.)+item", prefix):
                rows[prefix.removesuffix(".item")] += 1
                lists[prefix.removesuffix(".item")] += event == "start_array"
            if event in ("string", "number", "boolean", "null", "start_map") and prefix:
                values[prefix.rpartition(".")[0]] += 1
    if records is None and not rows and values and max(values.values()) > _MANY:
        fix = "Write a list of objects, one per row, as df.to_json(path, orient='records') does"
        raise UserError("is an object of columns, not a list of rows", where=label, fix=fix)
    longest = max(rows, key=rows.__getitem__, default="") if records is None else records
    of_lists = lists[longest] > rows[longest] / 2
    around, dot, last = longest.rpartition(".")
    path = f"{around}{dot}*" if records is None and split_of(last) else longest
    return path, of_lists, tuple(names) if of_lists else ()


def split_of(name: str) -> str | None:
    """Return the split that the name of a file, folder, list or sheet tells, or the value of a column; or None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next(
        (split for split, pattern in _SPLITS.items() if any(re.fullmatch(pattern, word) for word in words)), None
    )


def _tell_splits(names: Sequence[str]) -> bool:
    return "train" in map(split_of, names)
