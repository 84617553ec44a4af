"""Define the command `textmill`: its subcommands in groups, its version and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated

import typer

from textmill import __version__
from textmill.cli.adopt import adopt
from textmill.cli.card import card
from textmill.cli.choose import choose
from textmill.cli.compare import compare
from textmill.cli.doctor import doctor
from textmill.cli.drift import drift
from textmill.cli.evaluate import evaluate
from textmill.cli.generate import generate
from textmill.cli.history import history
from textmill.cli.init import init
from textmill.cli.label import label
from textmill.cli.lineage import lineage
from textmill.cli.output import TextsCommand
from textmill.cli.plan import plan
from textmill.cli.predict import predict
from textmill.cli.promote import promote, rollback
from textmill.cli.report import report
from textmill.cli.reproduce import reproduce
from textmill.cli.retrain import retrain
from textmill.cli.serve import serve
from textmill.cli.server import server
from textmill.cli.summary import summary
from textmill.cli.sync import sync
from textmill.cli.tune import tune
from textmill.cli.verify import verify
from textmill.cli.why import why
from textmill.cli.winrate import winrate
from textmill.errors import one_line_errors

# In the order of use; `--help` shows them so.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Make": (init, why, choose, tune, plan, summary, report, adopt, label, sync),
    "Judge": (retrain, evaluate, winrate, compare, promote, rollback, history),
    "Serve": (predict, generate, serve, server),
    "Inspect": (lineage, verify, reproduce, card, drift, doctor),
}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for group, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=group, cls=TextsCommand if command in (predict, generate) else None)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"textmill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train, judge and serve language models. `dvc repro` runs the pipeline; these commands work with its results."""


def main() -> None:
    """Run the command. An error that the user can correct ends it with one line and status 1."""
    if isinstance(sys.stdout, TextIOWrapper):  # where the terminal's encoding lacks a character, its number is printed
        sys.stdout.reconfigure(errors="backslashreplace")
    with one_line_errors("textmill"):
        app()
