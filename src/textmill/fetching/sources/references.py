"""Read JSON Lines with several references in separate fields, and join these in one column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section
from textmill.errors import UserError
from textmill.fetching.sources.base import Provenance, Source, Split
from textmill.fetching.sources.local import find_file, write_rows


class ReferencesSourceConfig(Section):
    """Options: files and their fields.

    Attributes:
        files: Split -> path, relative to the project's folder.
        id: Field of the row's name.
        text: Field of the text.
        references: Fields of the references; a row has at least one of them.
    """

    files: Annotated[dict[Split, str], Field(min_length=1)]
    id: str
    text: str
    references: Annotated[list[str], Field(min_length=1)]
    licence: str | None = None


class ReferencesSource(Source):
    """Write `SPLIT/rows.jsonl`: `id`, `text`, `reference` (the first), and `references` (all, as JSON)."""

    Config: ClassVar[type[Section]] = ReferencesSourceConfig
    config: ReferencesSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every split; see `Source.fetch`.

        Raises:
            UserError: A file is missing, or a line is not a record with a text.
        """
        for split, name in self.config.files.items():
            write_rows(self._rows(find_file(name, root), name), destination / split / "rows.jsonl")
        return Provenance(", ".join(self.config.files.values()), None, self.config.licence, None)

    def _rows(self, path: Path, name: str) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                references = [str(record[field]) for field in self.config.references if record.get(field)]
                row = {"id": record[self.config.id], "text": record[self.config.text]}
            except (ValueError, KeyError, AttributeError) as error:
                fix = f"Write each line as a record with {self.config.id!r} and {self.config.text!r}"
                raise UserError(f"cannot be used ({error!r})", where=f"{name}:{number}", fix=fix) from error
            first = references[0] if references else None
            yield {**row, "reference": first, "references": json.dumps(references, ensure_ascii=False)}
