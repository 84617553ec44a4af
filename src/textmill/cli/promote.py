"""`textmill promote` and `textmill rollback`: change the champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from textmill.cli.output import INCONCLUSIVE, REFUSED, VERSION_HELP, AsJson, print_json, print_table

if TYPE_CHECKING:
    from textmill.registry.promotion.promotion import Promotion

_CODES = {"moved": 0, "refused": REFUSED, "stale champion": REFUSED, "inconclusive": INCONCLUSIVE}
_MARKS = {
    "pass": ("pass", "green"),
    "fail": ("fail", "red"),
    "inconclusive": ("cannot tell", "yellow"),
    "undecided": ("cannot tell", ""),
}


def promote(
    version: Annotated[str | None, Argument(help=f"{VERSION_HELP} Default: the challenger.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Run the gate and count the look; move nothing.")] = False,
    reason: Annotated[str, Option(help="Reason, shown in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if it passes the gate (conf/gate/).

    The gate measures challenger, champion and anchor (the best version proven so far) on the same test rows. If data
    grew, these are rows that none of them has seen.
    Each comparison on this split is a look; a later one must be clearer (gate.looks).

    Exit status: 0 promoted (or would be), 1 error, 3 refused or champion changed, 4 the split is too small to tell.

    Example: textmill promote --dry-run
    """
    from textmill.config.layout import find_layout
    from textmill.registry.promotion.promotion import promote as run

    done = run(version, find_layout(), reason=reason, dry_run=dry_run)
    if as_json:
        print_json(done.as_dict())
    else:
        _print_promotion(done)
    raise Exit(_CODES[done.event.outcome])


def rollback(
    reason: Annotated[str, Option(help="Reason, shown in the history.")],
    model: Annotated[str | None, Option(help="Registered model. Default: this project's model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again; deleted versions are skipped.

    First checks its digests and that it answers; otherwise nothing moves (exit status 3).

    Example: textmill rollback --reason "too many complaints"
    """
    from textmill.config.layout import find_layout
    from textmill.registry.promotion.rollback import rollback as run

    done = run(model, find_layout(), reason=reason)
    if as_json:
        print_json(done.as_dict())
    else:
        _print_end(done.model, done.recovered, done.as_dict())
    raise Exit(_CODES[done.event.outcome])


def _print_promotion(done: Promotion) -> None:
    from rich.text import Text

    if rows := [[check["name"], Text(*_MARKS[check["status"]]), check["words"]] for check in done.decision["checks"]]:
        print_table(("check", "result", "why"), rows, fixed=(1,))
    _print_end(done.model, done.recovered, done.as_dict())


def _print_end(model: str, recovered: str | None, event: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    if recovered:
        console.print(f"  Recovered: {escape(recovered)}.")
    version = f"{model} version {event['version']}"
    instead = f" in place of version {event['champion']}" if event["champion"] else ""
    if event["outcome"] == "moved" and event.get("dry_run"):
        console.print(f"  [bold]{version}[/bold] would be promoted{instead}. Nothing was moved.")
    elif event["outcome"] == "moved":
        console.print(f"  [bold]{version}[/bold] is now the champion{instead}.")
    else:
        console.print(f"  [bold]{version}[/bold] is not promoted: {event['outcome']}. Nothing was moved.")
        if event["verdict"] in (None, "pass"):  # otherwise the table shows the reason
            console.print(f"  {escape(event['words'])}.")
    if event.get("decision_address"):
        console.print(f"  Decision: {event['decision_address']}")
