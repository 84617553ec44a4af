"""What a source of raw text must do."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from textmill.config.plugins import Plugin

Split = Literal["train", "validation", "test", "all"]
"""`all` is cut into the other three by `prepare`."""


@dataclass(frozen=True)
class Provenance:
    """Where fetched bytes come from: an origin that can be fetched again, version, licence, digest.

    Attributes:
        made: How rows were made of them, where they are not the origin's own; the model card tells it.
    """

    origin: str
    version: str | None
    licence: str | None
    sha256: str | None
    made: str | None = None


class Source(Plugin):
    """A place that corpora come from, chosen in `conf/data/`."""

    @abstractmethod
    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Put the corpus's files into `destination/SPLIT/`: unchanged, or JSON Lines made from them.

        Args:
            destination: An empty folder.
            root: The project's folder, to which relative paths refer.

        Raises:
            UserError: It is not there, cannot be reached, or has a wrong digest.
        """
