"""The `textmill` command: its verbs, and how it ends."""

from __future__ import annotations

import sys

import typer

from textmill.cli.generate import generate
from textmill.cli.predict import predict
from textmill.cli.summary import summary
from textmill.errors import translate

app = typer.Typer(
    help="From raw text to a promoted, served language model, every step reproducible.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(predict)
app.command()(generate)
app.command()(summary)


def main() -> None:
    """Run the command. A mistake the user can mend ends it with one line and status 1."""
    try:
        app()
    except Exception as error:
        told = translate(error)
        if told is None:
            raise
        print(f"textmill: error: {told}", file=sys.stderr)
        sys.exit(1)
