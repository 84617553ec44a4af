"""`textmill card`: print the model card of a version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from textmill.cli.output import VERSION_HELP, AsJson, print_json


def card(
    version: Annotated[str, Argument(help=VERSION_HELP)],
    output: Annotated[Path | None, Option(help="Write the card to this file, not to the terminal.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the model card of a version as Markdown: metrics, data, origin, promotions.

    Example: textmill card movie-reviews/3 --output card.md
    """
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.lineage import find_origin
    from textmill.registry.promotion.version_card import version_card

    layout = find_layout()
    origin = find_origin(version, layout)
    text = version_card(origin, layout)
    if output is not None:
        from textmill.files import atomic_write

        atomic_write(output, text)
    if as_json:
        print_json({"version": origin.name, "card": text, "output": str(output) if output else None})
    elif output is None:
        print(text, end="")
    else:
        print(output)
