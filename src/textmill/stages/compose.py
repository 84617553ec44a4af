"""Compose `conf/` and `params.yaml` into `data/resolved.yaml`, checked once for all stages."""

from __future__ import annotations

import sys

from textmill.config import resolved
from textmill.config.layout import find_layout
from textmill.stages.runner import run_program


def main() -> None:
    """Make `data/resolved.yaml`."""
    from textmill.config.compose import compose

    layout = find_layout()
    resolved.write(layout.resolved, compose(layout, sys.argv[1:]))


if __name__ == "__main__":
    run_program("compose", main)
