"""`textmill compare`: two versions or runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textmill.cli.json_output import print_json

if TYPE_CHECKING:
    from textmill.evaluation.comparison_page import Part

_WHAT = "A version (NAME/VERSION, NAME@ALIAS, a bare version or alias) or the id of a run."


def compare(
    first: Annotated[str, typer.Argument(help=_WHAT)],
    second: Annotated[str, typer.Argument(help="The same.")],
    html: Annotated[Path | None, typer.Option(help="Write a page with plots here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what differs, and whether the difference is clear: textmill compare champion challenger.

    Differences are the second minus the first, with paired bootstrap intervals on the same rows.
    """
    from textmill.config.layout import find_layout
    from textmill.evaluation.comparison_page import parts_of, render_comparison
    from textmill.files import atomic_write
    from textmill.registry.promotion.comparison import compare as run

    found = run(first, second, find_layout())
    parts = parts_of(
        found.names,
        found.figures,
        found.differences,
        found.higher_is_better,
        found.costs,
        found.digests,
        found.params,
    )
    if html is not None:
        atomic_write(html, render_comparison(found.names, found.how, parts, found.figures, found.differences))
    if as_json:
        print_json(found.as_dict())
        return
    for part in parts:
        _print_part(part)
    print(f"  {found.how}")
    if html is not None:
        print(f"  Page with plots: {html}")


def _print_part(part: Part) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not part.table.rows:
        print(f"\n  {part.empty}\n")
        return
    table = Table(box=box.SIMPLE_HEAD, title=escape(part.title), title_justify="left")
    for name, number in zip(part.table.head, part.table.numeric, strict=True):
        table.add_column(escape(name), justify="right" if number else "left", overflow="fold")
    for row in part.table.rows:
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)
