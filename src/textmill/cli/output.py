"""Output of the commands: JSON documents, tables on the terminal, exit codes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Container, Iterable, Sequence
from typing import Annotated, Any, Literal

from typer import Option
from typer.core import TyperCommand

VERSION_HELP = "NAME/VERSION or NAME@ALIAS, also after models:/; or a version or alias of this project's model."
MODEL_HELP = "Folder, models:/NAME/VERSION or models:/NAME@ALIAS."

AsJson = Annotated[bool, Option("--json", help="Print one JSON document.")]

# Exit codes besides 0 (success), 1 (error in one line) and 2 (wrong usage, by typer).
REFUSED = 3
"""A check failed: the gate, a digest, a metric, or the champion changed meanwhile."""
INCONCLUSIVE = 4
"""There is too little data to decide; nothing was changed."""
UNCHANGED = 5
"""There is nothing new to train on or to judge."""
BUSY = 6
"""Another process does the same in this project."""


_OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?")


class TextsCommand(TyperCommand):
    """A command whose arguments are texts: `-5 stars` is one, and a misspelt option is still an error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; what does not look like an option may begin with a minus."""
        own = args[: args.index("--")] if "--" in args else args
        known = {name for parameter in self.params for name in parameter.opts} | {"--help"}
        unknown = [arg for arg in own if _OPTION.fullmatch(arg) and arg.partition("=")[0] not in known]
        ctx.ignore_unknown_options = not unknown
        return super().parse_args(ctx, args)


def print_json(document: Any) -> None:
    """Print one JSON document; NaN and infinity become null. An output that is not UTF-8 gets ASCII."""
    from pydantic_core import to_json

    text = to_json(document, indent=2, inf_nan_mode="null").decode()
    if not (sys.stdout.encoding or "utf-8").lower().startswith("utf"):
        text = json.dumps(json.loads(text), indent=2)
    print(text, flush=True)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    numeric: Container[int] = (),
    fixed: Container[int] = (),
) -> None:
    """Print rows under a head; strings are printed as they are, without markup.

    Args:
        columns: Names of the columns.
        rows: Cells of each row, as strings or as `rich.text.Text` with a style.
        title: Above the table.
        numeric: Positions of columns aligned on the right.
        fixed: Positions of columns that are never wrapped.
    """
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=escape(title) if title else None, title_justify="left")
    for number, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if number in numeric else "left"
        table.add_column(escape(name), justify=justify, no_wrap=number in fixed, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    Console().print(table)
