"""JSON Lines whose rows hold several true answers, in fields of their own: joined to one row of the same form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.layout import Layout
from textmill.config.section import Section
from textmill.errors import UserError
from textmill.fetching.sources.base import Provenance, Source, Split


class ReferencesSourceConfig(Section):
    """Which files, and which of their fields.

    Attributes:
        files: Split -> path, relative to the project's folder.
        id: Field that names a row.
        text: Field of the text.
        references: Fields of the true answers; a row has one of them at least.
        licence: Of the corpus.
    """

    files: Annotated[dict[Split, str], Field(min_length=1)]
    id: str
    text: str
    references: Annotated[list[str], Field(min_length=1)]
    licence: str | None = None


class ReferencesSource(Source):
    """Writes `SPLIT/rows.jsonl`: `id`, `text`, `reference`, the first, and `references`, all of them as JSON."""

    Config: ClassVar[type[Section]] = ReferencesSourceConfig
    config: ReferencesSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every split; see `Source.fetch`.

        Raises:
            UserError: A file is missing, or a line is no record with a text.
        """
        for split, name in self.config.files.items():
            path = next((place / name for place in (root, Layout(root).home) if (place / name).is_file()), None)
            if path is None:
                raise UserError(
                    "no such file", where=name, fix="Check the path; it is relative to the project's folder"
                )
            folder = destination / split
            folder.mkdir(parents=True)
            with (folder / "rows.jsonl").open("w", encoding="utf-8") as written:
                for row in self._rows(path, name):
                    written.write(json.dumps(row, ensure_ascii=False) + "\n")
        return Provenance(", ".join(self.config.files.values()), None, self.config.licence, None)

    def _rows(self, path: Path, name: str) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                known = [str(record[field]) for field in self.config.references if record.get(field)]
                row = {"id": record[self.config.id], "text": record[self.config.text]}
            except (ValueError, KeyError, AttributeError) as error:
                fix = f"Each line is a record with {self.config.id!r} and {self.config.text!r}"
                raise UserError(f"cannot be used ({error!r})", where=f"{name}:{number}", fix=fix) from error
            first = known[0] if known else None
            yield {**row, "reference": first, "references": json.dumps(known, ensure_ascii=False)}
