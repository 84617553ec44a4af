"""`textmill history`: list the promotions and rollbacks of a model."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument

from textmill.cli.output import AsJson, print_json, print_table


def history(
    model: Annotated[str | None, Argument(help="Registered model. Default: this project's model.")] = None,
    as_json: AsJson = False,
) -> None:
    """List all promotions and rollbacks with their reasons, oldest first.

    First completes or undoes a promotion or rollback that was killed midway.

    Example: textmill history --json
    """
    from textmill.config.layout import find_layout
    from textmill.registry.promotion.promotion import history_of

    document = history_of(model, find_layout())
    if as_json:
        print_json(document)
    else:
        _print(document)


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.text import Text

    console = Console(highlight=False)
    if document["recovered"]:
        console.print(f"  Recovered: {escape(document['recovered'])}.", soft_wrap=True)
    rows = []
    for event in document["events"]:
        moved = event["outcome"] == "moved"
        step = f"{event['champion'] or 'none'} → {event['version']}"
        why = event["reason"] if moved else ": ".join(filter(None, (event["reason"], _shortened(event["words"]))))
        # Time and user share a cell: the reason needs the width.
        when = f"{event['time'][:16].replace('T', ' ')}\n{_cut(event['user'], 16)}"
        rows.append([when, event["action"], step, Text(event["outcome"], "bold" if moved else ""), why or "-"])
    print_table(("time (UTC), user", "action", "version", "outcome", "reason"), rows, fixed=range(4))
    aliases = ", ".join(f"{alias} is version {version}" for alias, version in document["aliases"].items())
    console.print(f"  {document['model']}: {aliases or 'no alias is set'}.", soft_wrap=True)
    if document["anchor"] is not None:
        console.print(f"  The anchor is version {document['anchor']}.", soft_wrap=True)
    for digest, number in document["looks"].items():
        console.print(f"  Looks at the evaluation set {digest[:12]}: {number}.", soft_wrap=True)
    if document["deleted_champion"] is not None:
        deleted = f"The last champion, version {document['deleted_champion']}, was deleted."
        console.print(f"  {deleted} `textmill rollback` restores the one before it.", soft_wrap=True)
    elif document["moved_elsewhere"]:
        console.print("  The alias champion was last moved outside of promote and rollback.", soft_wrap=True)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _shortened(words: str) -> str:
    """Return the first of several reasons; `--json` and the decision have all."""
    first, *others = words.split("; ")
    return f"{first} (and {len(others)} more)" if others else first
