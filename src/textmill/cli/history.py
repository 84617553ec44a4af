"""`textmill history`: who was champion when, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from textmill.cli.json_output import print_json


def history(
    model: Annotated[str | None, typer.Argument(help="Registered model. Default: this project's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show every promotion and rollback, oldest first: textmill history --json.

    A promotion or rollback that was killed midway is completed or undone first.
    """
    from textmill.config.layout import find_layout
    from textmill.registry.promotion.promotion import history_of

    found = history_of(model, find_layout())
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if found["recovered"]:
        console.print(f"  First, {escape(found['recovered'])}.", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("time (UTC)", "user", "action", "version", "verdict", "outcome"):
        table.add_column(column, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for event in found["events"]:
        moved = event["outcome"] == "moved"
        step = f"{event['champion'] or 'none'} → {event['version']}"
        why = event["reason"] if moved else ": ".join(filter(None, (event["reason"], _shortened(event["words"]))))
        table.add_row(
            event["time"][:19].replace("T", " "),
            escape(event["user"]),
            event["action"],
            step,
            event["verdict"] or "-",
            f"[bold]{event['outcome']}[/bold]" if moved else event["outcome"],
            escape(why),
        )
    console.print(table)
    held = ", ".join(f"{alias} is version {version}" for alias, version in found["aliases"].items())
    console.print(f"  {found['model']}: {held or 'no alias is set'}.", soft_wrap=True)
    if found["moved_elsewhere"]:
        console.print("  The alias champion was moved last by something else than promote or rollback.", soft_wrap=True)


def _shortened(words: str) -> str:
    """The first of several reasons; `--json` and the decision have them all."""
    first, *others = words.split("; ")
    return f"{first} (and {len(others)} more)" if others else first
