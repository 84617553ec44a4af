"""Fetch the corpus unchanged and record its origin."""

from __future__ import annotations

import logging
from dataclasses import asdict

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError
from textmill.fetching.sources.base import Source
from textmill.files import atomic_folder, folder_digests, write_json

log = logging.getLogger("textmill")


def fetch_corpus(config: FetchConfig, layout: Layout) -> None:
    """Write `data/raw`: the files of each split, and `provenance.json` with their digests.

    Raises:
        UserError: The source does not exist, cannot be reached, or has a wrong digest.
    """
    source = Source.build(config.source)
    with atomic_folder(layout.raw) as partial:
        files = partial / "files"
        files.mkdir()
        provenance = source.fetch(files, layout.root)
        digests = folder_digests(files)
        if not digests:
            raise UserError("the source has no files", where="fetch.source")
        write_json(partial / "provenance.json", {**asdict(provenance), "files": digests})
    log.info("fetch: %d file(s) from %s", len(digests), provenance.origin)
