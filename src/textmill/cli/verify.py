"""`textmill verify`: check the lineage of a version."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit

from textmill.cli.output import INCONCLUSIVE, REFUSED, VERSION_HELP, AsJson, print_json, print_table

if TYPE_CHECKING:
    from textmill.registry.lineage.verification import Link

_STYLE = {"holds": "green", "broken": "bold red", "unchecked": "yellow"}


def verify(
    version: Annotated[str, Argument(help=VERSION_HELP)],
    as_json: AsJson = False,
) -> None:
    """Check each link of a version's lineage against this repository and the DVC cache.

    Exit status: 0 all links hold, 1 error, 3 a link is broken, 4 a link could not be checked.

    Example: textmill verify models:/movie-reviews@challenger
    """
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.lineage import find_origin
    from textmill.registry.lineage.verification import verify_origin

    origin = find_origin(version, find_layout())
    links = list(verify_origin(origin))
    statuses = {link.status for link in links}
    verdict = "broken" if "broken" in statuses else "unchecked" if "unchecked" in statuses else "holds"
    if as_json:
        print_json({"version": origin.name, "verdict": verdict, "links": [asdict(link) for link in links]})
    else:
        _print_table(origin.name, links)
    if verdict != "holds":
        raise Exit(REFUSED if verdict == "broken" else INCONCLUSIVE)


def _print_table(name: str, links: list[Link]) -> None:
    from rich.text import Text

    rows = [[link.name, Text(link.status, _STYLE[link.status]), link.detail] for link in links]
    print_table(("link", "status", "detail"), rows, title=f"Links of {name}")
