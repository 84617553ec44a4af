"""Fetch a corpus from the Hugging Face hub, at a pinned revision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from textmill.config.section import Section
from textmill.errors import UserError, first_line
from textmill.fetching.sources.base import Provenance, Source, Split


class HubSourceConfig(Section):
    """Options: dataset, revision and splits.

    Attributes:
        name: `owner/dataset`, or a local folder in the hub's layout.
        revision: Git commit or tag; required, because a branch changes.
        subset: The dataset's configuration, if it has several.
        splits: Split here -> name of the split in the dataset.
    """

    name: str
    revision: Annotated[str, Field(min_length=1)]
    subset: str | None = None
    splits: Annotated[dict[Split, str], Field(min_length=1)]
    licence: str | None = None


class HubSource(Source):
    """Download a dataset of the hub and write one Parquet file for each split."""

    Config: ClassVar[type[Section]] = HubSourceConfig
    config: HubSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write `destination/SPLIT/DATASET.parquet`; see `Source.fetch`."""
        import datasets

        config = self.config
        local = root / config.name
        path = str(local) if local.is_dir() else config.name
        for split, name in config.splits.items():
            try:
                rows = datasets.load_dataset(path, config.subset, split=name, revision=config.revision)
            except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                fix = "Check its name, revision, split and the network"
                raise UserError(f"cannot be fetched ({first_line(error)})", where=config.name, fix=fix) from error
            (destination / split).mkdir()
            rows.to_parquet(destination / split / f"{Path(config.name).name}.parquet")
        return Provenance(f"hub:{config.name}", config.revision, config.licence, None)
