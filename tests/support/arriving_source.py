"""A source during whose first fetch another file arrives."""

from __future__ import annotations

from pathlib import Path

from textmill.fetching.sources.base import Provenance
from textmill.fetching.sources.files import FilesSource


class ArrivingSource(FilesSource):
    """Fetch files; behind the first fetch there is one more."""

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Fetch what is there; then a file arrives, once."""
        found = super().fetch(destination, root)
        late = root / "data/own/late.csv"
        if not late.exists():
            late.write_text("text,label\nlate,y\n")
        return found
