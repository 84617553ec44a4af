"""Fetch a corpus from several sources, to be mixed by weight."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from textmill.config.section import Section
from textmill.config.types import PluginSpec
from textmill.errors import UserError
from textmill.fetching.sources.base import Provenance, Source


def _without_dots(name: str) -> str:
    if not name or any(sign in name for sign in "./\\"):
        raise ValueError("must have no dot and no slash")
    return name


class MixtureSourceConfig(Section):
    """Options.

    Attributes:
        sources: Name -> the options of any other source. `prepare.mixture` gives their weights.
    """

    sources: Annotated[dict[Annotated[str, AfterValidator(_without_dots)], PluginSpec], Field(min_length=1)]


class MixtureSource(Source):
    """Fetch every source; its name is the value of the column `source` of its rows."""

    Config: ClassVar[type[Section]] = MixtureSourceConfig
    config: MixtureSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write `destination/SPLIT/NAME.FILE` for each file of each source; see `Source.fetch`."""
        found: dict[str, Provenance] = {}
        for name, spec in self.config.sources.items():
            with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
                found[name] = Source.build(spec).fetch(Path(folder), root)
                files = [path for path in Path(folder).glob("*/*") if path.is_file()]
                if not files:
                    raise UserError("the source has no files", where=f"fetch.source.sources.{name}")
                for path in files:
                    target = destination / path.parent.name / f"{name}.{path.name}"
                    target.parent.mkdir(exist_ok=True)
                    shutil.move(path, target)
        origin, version, licence, made = (
            "; ".join(f"{name}: {value}" for name, one in found.items() if (value := getattr(one, key)) is not None)
            for key in ("origin", "version", "licence", "made")
        )
        return Provenance(origin, version or None, licence or None, None, made or None)
