"""Clean, check, deduplicate, split and tokenise the fetched files."""

from __future__ import annotations

from textmill.config.layout import Layout
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.stages.runner import run_stage


def main(config: PrepareConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/prepared` from `data/raw`."""
    from textmill.data.prepare import prepare

    prepare(config, runtime, layout)


if __name__ == "__main__":
    run_stage("prepare", main)
