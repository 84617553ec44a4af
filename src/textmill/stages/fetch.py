"""Bring the corpus and the pretrained weights by name, with their digests checked."""

from __future__ import annotations

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.stages.runner import run_stage


def main(config: FetchConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/raw` and `data/pretrained`."""
    from textmill.fetching.corpus import fetch_corpus
    from textmill.fetching.pretrained import fetch_pretrained

    fetch_corpus(config, layout)
    fetch_pretrained(config, layout)


if __name__ == "__main__":
    run_stage("fetch", main)
