"""Parallel files: line n of one belongs to line n of the other."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from textmill.config.layout import Layout
from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.errors import UserError
from textmill.fetching.sources.base import Provenance, Source, Split
from textmill.files import sha256_file

Halves = Annotated[dict[str, str], Field(min_length=2)]


class ParallelSourceConfig(Section):
    """Which files.

    Attributes:
        files: Split -> column -> path of a file with a text on each line, plain or `.gz`, relative to
            the project's folder. The files of a split have equally many lines.
        sha256: File name -> its digest, for files that must not change unseen.
        licence: Of the corpus.
    """

    files: Annotated[dict[Split, Halves], Field(min_length=1)]
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    licence: str | None = None


class ParallelSource(Source):
    """Joins parallel files line by line, and writes `SPLIT/pairs.jsonl` for each split."""

    Config: ClassVar[type[Section]] = ParallelSourceConfig
    config: ParallelSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every split; see `Source.fetch`.

        Raises:
            UserError: A file is missing, changed or not UTF-8, or two have different numbers of lines.
        """
        for split, halves in self.config.files.items():
            paths = {column: self._found(path, root) for column, path in halves.items()}
            folder = destination / split
            folder.mkdir(parents=True)
            with (folder / "pairs.jsonl").open("w", encoding="utf-8") as written:
                for row in _rows(paths):
                    written.write(json.dumps(row, ensure_ascii=False) + "\n")
        origin = ", ".join(path for halves in self.config.files.values() for path in halves.values())
        return Provenance(origin, None, self.config.licence, None)

    def _found(self, name: str, root: Path) -> Path:
        # The copy in which `dvc exp run --temp` works lacks what git ignores; its home has it.
        for place in (root, Layout(root).home):
            path = place / name
            if not path.is_file():
                continue
            expected = self.config.sha256.get(path.name)
            if expected is not None and (actual := sha256_file(path)) != expected:
                fix = "Restore the file, or change the digest if the change is meant"
                raise UserError(f"wrong digest {actual}, {expected} is required", where=name, fix=fix)
            return path
        raise UserError("no such file", where=name, fix="Check the path; it is relative to the project's folder")


def _rows(paths: dict[str, Path]) -> Iterator[dict[str, str]]:
    """A record a line."""
    lines = {column: _lines(path) for column, path in paths.items()}
    counts = {column: len(found) for column, found in lines.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{paths[column]} has {count} lines" for column, count in counts.items())
        raise UserError(
            f"the files do not belong together line by line: {told}",
            where="fetch.source.files",
            fix="Give files of which line n belongs to line n of the other",
        )
    for texts in zip(*lines.values(), strict=True):
        yield dict(zip(lines, texts, strict=True))


def _lines(path: Path) -> list[str]:
    """The lines of a file; only a line feed ends one, as other line ends occur within sentences."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), fix="Fetch the file again") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError("not UTF-8", where=f"{path}:{line}", fix="Save the file as UTF-8") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
