"""Read raw text files as rows, one for each document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from textmill.config.sections.prepare import TextConfig
from textmill.data.formats import open_text
from textmill.text.rejected_rows import RejectedRow, excerpt

COLUMN = "text"
"""The only column of a raw text file."""

Part = tuple[float, float]
"""Start and end of a part of a file, as shares of its bytes."""
WHOLE: Part = (0.0, 1.0)


def read_documents(
    path: Path, label: str, config: TextConfig, part: Part = WHOLE, encoding: str = "utf-8"
) -> Iterator[tuple[int, str | RejectedRow]]:
    """Yield the documents of a file, or of a part of it, each with its first line number in that part.

    Lines end in a newline only. Text that matches `config.drop` is removed. Documents of white space
    are skipped, and documents that are not UTF-8 rejected. A part is cut at a character boundary.
    """
    dropped = [re.compile(pattern, re.MULTILINE | re.DOTALL) for pattern in config.drop]
    for line, content in _blocks(_lines(path, part, encoding), config):
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            shown = excerpt(content[:1000].decode("utf-8", "backslashreplace"))
            yield line, RejectedRow(line, "row", f"is not {encoding.upper()}", label, shown)
            continue
        text = text.replace("\r\n", "\n").removeprefix("\ufeff")
        for pattern in dropped:
            text = pattern.sub("", text)
        if text.strip():
            yield line, text


def _blocks(lines: Iterable[bytes], config: TextConfig) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of each document with its first line number."""
    begins = re.compile(config.begins.encode()) if config.begins is not None else None
    block: list[bytes] = []
    first = 1
    for number, line in enumerate(lines, start=1):
        if config.document == "paragraph":
            is_new = bool(block) and not block[-1].strip() and bool(line.strip())
        else:
            is_new = bool(block) and begins is not None and begins.search(line) is not None
        if is_new:
            yield first, b"".join(block)
            block, first = [], number
        block.append(line)
    if block:
        yield first, b"".join(block)


def _lines(path: Path, part: Part, encoding: str) -> Iterator[bytes]:
    """Yield the lines in UTF-8; what cannot be decoded stays as it is, and is invalid there too."""
    if part == WHOLE:
        with open_text(path, encoding, newline="\n") as text:
            yield from (line.encode("utf-8", "surrogateescape") for line in text)
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        end = _character_boundary(file, int(size * part[1]), size)
        position = _character_boundary(file, int(size * part[0]), size)
        file.seek(position)
        while position < end:
            line = file.readline(end - position)
            position += len(line)
            yield line


def _character_boundary(file: BinaryIO, position: int, size: int) -> int:
    """Return the first position from `position` on at which a UTF-8 character begins."""
    file.seek(position)
    for byte in file.read(3):
        if byte & 0xC0 != 0x80:
            break
        position += 1
    return min(position, size)
