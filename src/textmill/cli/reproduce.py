"""`textmill reproduce`: a version made again from its commit."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from textmill.cli.exit_codes import REFUSED
from textmill.cli.json_output import print_json
from textmill.cli.lineage import VERSION_HELP

if TYPE_CHECKING:
    from textmill.registry.lineage.reproduction import Reproduction


def reproduce(
    version: Annotated[str, typer.Argument(help=VERSION_HELP)],
    force: Annotated[
        bool, typer.Option("--force", help="Train again, too, instead of taking the weights from DVC's cache.")
    ] = False,
    allow_dirty: Annotated[
        bool, typer.Option("--allow-dirty", help="Go on although the commit had uncommitted changes.")
    ] = False,
    tolerance: Annotated[float, typer.Option(min=0, help="Difference up to which a metric counts as equal.")] = 1e-6,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a version again from its git commit, in a place of its own, and compare the metrics.

    Ends with 0 when all metrics are equal, 3 when one is not.

    Example: textmill reproduce movie-reviews/3 --force
    """
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.lineage import find_origin
    from textmill.registry.lineage.reproduction import reproduce as make_again

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    layout = find_layout()
    origin = find_origin(version, layout)
    try:
        found = make_again(origin, layout, force=force, allow_dirty=allow_dirty)
    except KeyboardInterrupt:
        print("textmill reproduce: interrupted; the worktree is removed", file=sys.stderr)
        raise typer.Exit(130) from None
    wrong = found.differing(tolerance)
    if as_json:
        document = {"version": origin.name, "equal": not wrong, "tolerance": tolerance, **asdict(found)}
        print_json(document)
    else:
        _print_table(origin.name, found, tolerance)
    if wrong:
        raise typer.Exit(REFUSED)


def _print_table(name: str, found: Reproduction, tolerance: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    wrong = {figure.name for figure in found.differing(tolerance)}
    table = Table(box=box.SIMPLE_HEAD, title=f"{name} again, from commit {found.commit[:12]}", title_justify="left")
    table.add_column("metric")
    for column in ("registered", "reproduced", "difference"):
        table.add_column(column, justify="right")
    for figure in found.figures:
        if figure.name in wrong or _headline(figure.name):
            again = figure.reproduced
            cells = ("-", "-") if again is None else (f"{again:.6f}", f"{again - figure.registered:+.2e}")
            table.add_row(
                escape(figure.name), f"{figure.registered:.6f}", *cells, style="red" if figure.name in wrong else ""
            )
    console = Console()
    console.print(table)
    weights = "the same to the bit" if found.same_weights else "not the same to the bit"
    equal = f"{len(found.figures) - len(wrong)} of {len(found.figures)} metrics are equal"
    console.print(f"  {equal} (within {tolerance:g}); the weights are {weights}.", highlight=False)
    console.print(f"  Computed anew: {', '.join(found.ran)}. The rest came from DVC's cache.", highlight=False)


def _headline(name: str) -> bool:
    """Whether a metric is the model's own over all test rows."""
    return name.startswith("test/") and name.count("/") == 1 and not name.endswith(("_low", "_high"))
