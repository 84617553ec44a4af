"""The `textmill` command: its verbs, and how it ends."""

from __future__ import annotations

import typer

from textmill.cli.adopt import adopt
from textmill.cli.card import card
from textmill.cli.choose import choose
from textmill.cli.compare import compare
from textmill.cli.drift import drift
from textmill.cli.generate import generate
from textmill.cli.history import history
from textmill.cli.lineage import lineage
from textmill.cli.predict import predict
from textmill.cli.promote import promote, rollback
from textmill.cli.reproduce import reproduce
from textmill.cli.serve import serve
from textmill.cli.server import server
from textmill.cli.summary import summary
from textmill.cli.verify import verify
from textmill.cli.why import why
from textmill.errors import one_line_errors

app = typer.Typer(
    help="From raw text to a promoted, served language model, every step reproducible.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(why)
app.command()(predict)
app.command()(server)
app.command()(serve)
app.command()(generate)
app.command()(summary)
app.command()(choose)
app.command()(compare)
app.command()(promote)
app.command()(rollback)
app.command()(history)
app.command()(lineage)
app.command()(verify)
app.command()(reproduce)
app.command()(adopt)
app.command()(card)
app.command()(drift)


def main() -> None:
    """Run the command. A mistake the user can mend ends it with one line and status 1."""
    with one_line_errors("textmill"):
        app()
