"""The `textmill` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; Ctrl-C ends it with status 130 and no traceback, also while its modules are imported."""
    try:
        from textmill.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
