"""`textmill why`: what made each stage run last, and what will make it run."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from textmill.cli.output import AsJson, print_json

_TOLD = 12


def why(
    stage: Annotated[str | None, typer.Argument(help="compose, fetch, prepare, train, …; all when not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say why each stage ran last and will run next: parameter, data, function, package or output.

    Example: textmill why train
    """
    from textmill.config.layout import find_layout
    from textmill.errors import UserError, did_you_mean
    from textmill.stages.reasons import last, upcoming

    layout = find_layout()
    found = upcoming(layout)
    if stage is not None and stage not in found:
        raise UserError("no such stage", where=stage, fix=f"{did_you_mean(stage, found)}Name one of {', '.join(found)}")
    document = {}
    for name in [stage] if stage else found:
        before = last(name, layout)
        document[name] = {
            "last": {"time": before.time, "reasons": [asdict(each) for each in before.reasons]} if before else None,
            "next": [asdict(each) for each in found[name]],
        }
        if not as_json:
            print(name)
            if before:
                ran = datetime.fromtimestamp(before.time)
                _print(f"ran last on {ran:%Y-%m-%d at %H:%M}, because", [each.text for each in before.reasons])
            _print("will run, because" if found[name] else "is up to date", [each.text for each in found[name]])
    if as_json:
        print_json(document)


def _print(title: str, reasons: list[str]) -> None:
    print(f"  {title}")
    for reason in reasons[:_TOLD]:
        print(f"    {reason}")
    if len(reasons) > _TOLD:
        print(f"    and {len(reasons) - _TOLD} more; --json shows all")
