"""Bring a registered version, or an exported folder, as the teacher of a student."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from textmill.config.layout import Layout
from textmill.config.section import Section
from textmill.fetching.sources.base import Provenance, Source
from textmill.fetching.sources.local import places
from textmill.files import read_optional
from textmill.predicting.exported import verify
from textmill.registry.versions.registered_source import RegisteredSource
from textmill.serving.loading import FolderSource


class TrainedModelConfig(Section):
    """Options: which model.

    Attributes:
        model: Address of a version (`NAME/VERSION`, `NAME@ALIAS`), or an exported folder, relative to the project.
    """

    model: str


class TrainedModelSource(Source):
    """Copy the exported folder of a registered version, or of a path, after a check of all digests.

    An alias is looked up when the stage runs; the provenance names the version. `dvc repro --force fetch`
    looks it up again.
    """

    Config: ClassVar[type[Section]] = TrainedModelConfig
    config: TrainedModelConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the files of the exported model; see `Source.fetch`.

        Raises:
            UserError: There is no such version or folder, a file was changed, or the store does not answer.
        """
        name = self.config.model
        local = next((place / name for place in places(root) if (place / name).is_dir()), None)
        if local is not None:
            found = FolderSource(local).fetch("")
            verify(found.folder, "Export the model again")
        else:
            source = RegisteredSource(name, Layout(root))
            found = source.fetch(source.latest())
        shutil.copytree(found.folder, destination, dirs_exist_ok=True)
        licence = (read_optional(destination / "provenance.json").get("corpus") or {}).get("licence")
        identity = found.identity
        return Provenance(name if local else identity.name, identity.version or None, licence, identity.manifest_sha256)
