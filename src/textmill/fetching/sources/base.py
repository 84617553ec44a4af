"""Base class of the sources of corpora."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from textmill.config.plugins import Plugin

Split = Literal["train", "validation", "test", "all"]
"""`prepare` cuts `all` into the other three."""


@dataclass(frozen=True)
class Provenance:
    """Origin, version, licence and digest of fetched files.

    Attributes:
        made: How rows were derived from the origin, if they were; the model card quotes it.
    """

    origin: str
    version: str | None
    licence: str | None
    sha256: str | None
    made: str | None = None


class Source(Plugin):
    """A source of a corpus, chosen in `conf/data/`."""

    @abstractmethod
    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Create `destination/SPLIT/` (a `Split`), and write the files there, unchanged or as JSON Lines.

        Relative paths refer to `root`, the project's folder.

        Raises:
            UserError: The source does not exist, cannot be reached, or has a wrong digest.
        """
