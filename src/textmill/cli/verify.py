"""`textmill verify`: whether each link of a version's lineage holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from textmill.cli.exit_codes import INCONCLUSIVE, REFUSED
from textmill.cli.json_output import print_json
from textmill.cli.lineage import VERSION_HELP

if TYPE_CHECKING:
    from textmill.registry.lineage.verification import Link

_STYLE = {"holds": "green", "broken": "bold red", "unchecked": "yellow"}


def verify(
    version: Annotated[str, typer.Argument(help=VERSION_HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check each link of a version's lineage against this repository and the DVC cache.

    Ends with 0 when all hold, 3 when one is broken, 4 when one could not be checked.

    Example: textmill verify models:/movie-reviews@challenger
    """
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.lineage import find_origin
    from textmill.registry.lineage.verification import verify_origin

    origin = find_origin(version, find_layout())
    links = list(verify_origin(origin))
    found = {link.status for link in links}
    verdict = "broken" if "broken" in found else "unchecked" if "unchecked" in found else "holds"
    if as_json:
        document = {"version": origin.name, "verdict": verdict, "links": [asdict(link) for link in links]}
        print_json(document)
    else:
        _print_table(origin.name, links)
    if verdict != "holds":
        raise typer.Exit(REFUSED if verdict == "broken" else INCONCLUSIVE)


def _print_table(name: str, links: list[Link]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=f"Links of {name}", title_justify="left")
    for column in ("link", "status", "what was found"):
        table.add_column(column, overflow="fold")
    for link in links:
        table.add_row(link.name, Text(link.status, style=_STYLE[link.status]), Text(link.detail))
    Console().print(table)
