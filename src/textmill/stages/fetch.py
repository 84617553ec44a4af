"""Bring the corpus and the pretrained weights by name, with their digests checked."""

from __future__ import annotations

import logging
from pathlib import Path

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.stages.runner import run_stage

log = logging.getLogger("textmill")

_TRIES = 5


def main(config: FetchConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/raw` and `data/pretrained`.

    DVC hashes `data/own` after the stage: a file that arrives meanwhile would count as read. So it is read again.
    """
    from textmill.fetching.corpus import fetch_corpus
    from textmill.fetching.pretrained import fetch_pretrained

    own = layout.root / "data/own"
    seen = _files(own)
    fetch_corpus(config, layout)
    fetch_pretrained(config, layout)
    for _ in range(_TRIES):
        if (now := _files(own)) == seen:
            return
        log.info("fetch: data/own changed meanwhile; reading it again")
        seen = now
        fetch_corpus(config, layout)
    log.warning("fetch: data/own changes all the time; run `dvc repro --force fetch` when it rests")


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the size and the time of the last change of each file below a folder."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


if __name__ == "__main__":
    run_stage("fetch", main)
