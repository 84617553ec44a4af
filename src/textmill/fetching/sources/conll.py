"""Read entities in CoNLL columns: a token and its tag a line, sentences apart by a blank line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section
from textmill.errors import UserError
from textmill.fetching.sources.base import Provenance, Source, Split
from textmill.fetching.sources.local import find_file, write_rows
from textmill.text.entities import chunks

_COMMENTS = ("-DOCSTART-", "# ")
_PREFIXES = set("BIOES")


class ConllSourceConfig(Section):
    """Options: files and their columns.

    Attributes:
        files: Split -> path, relative to the project's folder.
        token: Position of the token's column, from 0.
        tag: Position of the tag's column; -1 is the last.
        separator: Text between columns; None is any space.
        encoding: Encoding of the files.
    """

    files: Annotated[dict[Split, str], Field(min_length=1)]
    token: int = 0
    tag: int = -1
    separator: str | None = None
    encoding: str = "utf-8"
    licence: str | None = None


class ConllSource(Source):
    """Write `SPLIT/rows.jsonl`: `id` (of the first line), `text` (the tokens between spaces), and `entities`.

    Tags are those of IOB1, IOB2 or IOBES, such as `B-person`.
    """

    Config: ClassVar[type[Section]] = ConllSourceConfig
    config: ConllSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the sentences of every split; see `Source.fetch`.

        Raises:
            UserError: A file is missing, or a line has no token or no tag.
        """
        for split, name in self.config.files.items():
            write_rows(self._rows(find_file(name, root), name, split), destination / split / "rows.jsonl")
        return Provenance(", ".join(self.config.files.values()), None, self.config.licence, None)

    def _rows(self, path: Path, name: str, split: str) -> Iterator[dict[str, Any]]:
        try:
            lines = path.read_text(encoding=self.config.encoding).split("\n")
        except UnicodeDecodeError as error:
            fix = "Set fetch.source.encoding"
            raise UserError(f"not {self.config.encoding}", where=name, fix=fix) from error
        numbered = enumerate((line.rstrip("\r") for line in lines), start=1)
        for filled, group in groupby(numbered, key=lambda line: bool(line[1].strip())):
            sentence = [line for line in group if filled and not line[1].startswith(_COMMENTS)]
            if sentence:
                pairs = [self._pair(line, f"{name}:{number}") for number, line in sentence]
                yield {"id": f"{split}:{sentence[0][0]}", **_row(pairs)}

    def _pair(self, line: str, where: str) -> tuple[str, str]:
        fields = line.split(self.config.separator)
        try:
            token, tag = fields[self.config.token].strip(), fields[self.config.tag].strip()
        except IndexError:
            token = tag = ""
        prefix, dash, label = tag.partition("-")
        if len(fields) < 2 or not token or prefix not in _PREFIXES or bool(dash and label) == (prefix == "O"):
            fix = "Write a token and a tag such as O or B-person on each line; see fetch.source.token and .tag"
            raise UserError(f"no token with a tag: {line[:60]!r}", where=where, fix=fix)
        return token, tag


def _row(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    starts, at = [], 0
    for token, _ in pairs:
        starts.append(at)
        at += len(token) + 1
    entities = [
        {"start": starts[first], "end": starts[last] + len(pairs[last][0]), "label": label}
        for first, last, label in chunks([tag for _, tag in pairs])
    ]
    return {"text": " ".join(token for token, _ in pairs), "entities": entities}
