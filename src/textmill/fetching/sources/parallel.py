"""Join parallel files: line n of one file corresponds to line n of the other."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.errors import UserError
from textmill.fetching.sources.archives import unpacked_limit
from textmill.fetching.sources.base import Provenance, Source, Split
from textmill.fetching.sources.local import check_digest, find_file, write_rows

Halves = Annotated[dict[str, str], Field(min_length=2)]


class ParallelSourceConfig(Section):
    """Options: files, digests and licence.

    Attributes:
        files: Split -> column -> path of a file with one text a line, plain or `.gz`, relative to
            the project's folder. The files of a split have the same number of lines.
        sha256: File name -> its digest, for files that must not change unnoticed.
    """

    files: Annotated[dict[Split, Halves], Field(min_length=1)]
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    licence: str | None = None


class ParallelSource(Source):
    """Join parallel files line by line and write `SPLIT/pairs.jsonl`."""

    Config: ClassVar[type[Section]] = ParallelSourceConfig
    config: ParallelSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every split; see `Source.fetch`.

        Raises:
            UserError: A file is missing, changed or not UTF-8, or two have different numbers of lines.
        """
        for split, halves in self.config.files.items():
            paths = {column: self._find(path, root) for column, path in halves.items()}
            write_rows(_rows(paths), destination / split / "pairs.jsonl")
        origin = ", ".join(path for halves in self.config.files.values() for path in halves.values())
        return Provenance(origin, None, self.config.licence, None)

    def _find(self, name: str, root: Path) -> Path:
        path = find_file(name, root)
        if (expected := self.config.sha256.get(path.name)) is not None:
            check_digest(path, expected, name)
        return path


def _rows(paths: dict[str, Path]) -> Iterator[dict[str, str]]:
    """Yield one row for each line."""
    lines = {column: _lines(path) for column, path in paths.items()}
    counts = {column: len(texts) for column, texts in lines.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{paths[column]} has {count} lines" for column, count in counts.items())
        fix = "Use files in which line n of one corresponds to line n of the other"
        raise UserError(f"the files are not parallel: {lengths}", where="fetch.source.files", fix=fix)
    for texts in zip(*lines.values(), strict=True):
        yield dict(zip(lines, texts, strict=True))


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; only a line feed ends a line, as other line ends occur in sentences."""
    limit = unpacked_limit(path.stat().st_size)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), fix="Fetch the file again") from error
    if len(content) > limit:
        fix = "If you trust it, unpack it yourself and name the file"
        raise UserError(f"unpacks to more than {limit >> 20} MiB", where=str(path), fix=fix)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError("not UTF-8", where=f"{path}:{line}", fix="Save the file as UTF-8") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
