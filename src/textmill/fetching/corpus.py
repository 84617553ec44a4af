"""Fetch the corpus unchanged and record its origin."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError
from textmill.fetching.sources.base import Source
from textmill.fetching.sources.local import find_file
from textmill.files import atomic_folder, folder_digests, sha256_file, write_json

log = logging.getLogger("textmill")

TEACHER = "teacher"
"""Folder with the exported model that teaches, and its key in the provenance."""
CORRECTIONS = "corrections"
"""Folder with the file of `prepare.corrections`, and its key in the provenance."""


def fetch_corpus(config: FetchConfig, layout: Layout) -> None:
    """Write `data/raw`: the files of each split, and `provenance.json` with their digests.

    The exported model of `fetch.teacher`, if any, is in `data/raw/teacher`, the file of
    `prepare.corrections` in `data/raw/corrections`.

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
        held_out = {name: _held_out(name, config, partial, layout) for name in config.held_out}
        record = {**asdict(provenance), "files": digests}
        record |= {"held_out": held_out} if held_out else {}
        if config.teacher is not None:
            (partial / TEACHER).mkdir()
            taught = Source.build(config.teacher).fetch(partial / TEACHER, layout.root)
            record[TEACHER] = asdict(taught)
        if config.corrections is not None:
            corrections = find_file(config.corrections, layout.root)
            (partial / CORRECTIONS).mkdir()
            shutil.copyfile(corrections, partial / CORRECTIONS / corrections.name)
            record[CORRECTIONS] = {"origin": config.corrections, "sha256": sha256_file(corrections)}
        write_json(partial / "provenance.json", record)
    log.info("fetch: %d file(s) from %s", len(digests), provenance.origin)


def _held_out(name: str, config: FetchConfig, raw: Path, layout: Layout) -> dict[str, Any]:
    """Write `raw/held_out/NAME` and return its provenance, with the digests of its files."""
    folder = raw / "held_out" / name
    folder.mkdir(parents=True)
    provenance = Source.build(config.held_out[name]).fetch(folder, layout.root)
    return {**asdict(provenance), "files": folder_digests(folder)}
