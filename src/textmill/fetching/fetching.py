"""The corpus as it was published, with a record of where it came from."""

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
    """Make `data/raw`: the files by split, and `provenance.json` with the digest of each.

    Raises:
        UserError: The source is not there, cannot be reached, or has a wrong digest.
    """
    source = Source.build(config.source)
    with atomic_folder(layout.raw) as partial:
        files = partial / "files"
        files.mkdir()
        provenance = source.fetch(files, layout.root)
        digests = folder_digests(files)
        if not digests:
            raise UserError("the source brought no files", where="fetch.source")
        write_json(partial / "provenance.json", {**asdict(provenance), "files": digests})
    log.info("fetch: %d file(s) from %s", len(digests), provenance.origin)
