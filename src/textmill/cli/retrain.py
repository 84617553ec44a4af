"""`textmill retrain`: what a schedule runs each day."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from textmill.cli.output import BUSY, INCONCLUSIVE, REFUSED, UNCHANGED, AsJson, print_json

if TYPE_CHECKING:
    from textmill.selection.retraining import Retraining

_CODES = {"promoted": 0, "refused": REFUSED, "inconclusive": INCONCLUSIVE, "unchanged": UNCHANGED}


def retrain(
    dry_run: Annotated[bool, Option("--dry-run", help="Train, register and run the gate; move nothing.")] = False,
    reason: Annotated[str, Option(help="Reason, shown in the history.")] = "textmill retrain",
    webhook: Annotated[
        str | None,
        Option("--notify", envvar="TEXTMILL_NOTIFY", help="Address that gets the outcome as JSON, by POST."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch new data, run the pipeline, and promote the new version if the gate passes: for cron, CI or Kubernetes.

    Prints one line. Does nothing if data, settings and code are those of a version that was judged before.

    Exit status: 0 promoted, 1 error, 3 refused, 4 too little data to tell, 5 unchanged, 6 another retrain runs.

    Example: textmill retrain --notify https://hooks.example.com/models
    """
    import logging
    import sys

    from textmill.config.layout import find_layout
    from textmill.errors import UserError
    from textmill.processes import exit_on_signals
    from textmill.selection.retraining import BusyError, check_webhook, notify
    from textmill.selection.retraining import retrain as run

    exit_on_signals()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    address = check_webhook(webhook) if webhook else None
    try:
        done = run(find_layout(), reason=reason, dry_run=dry_run)
    except BusyError as error:
        print(f"textmill retrain: {error}", file=sys.stderr)
        raise Exit(BUSY) from error
    except UserError as error:
        if address:
            notify(address, {"text": f"textmill retrain: error: {error}", "outcome": "error"})
        raise
    except KeyboardInterrupt:
        print("textmill retrain: interrupted; the same command continues", file=sys.stderr)
        raise Exit(130) from None
    document = _document(done)
    if address and done.outcome != "unchanged":
        notify(address, document)
    if as_json:
        print_json(document)
    else:
        print(done.line)
    raise Exit(_CODES[done.outcome])


def _document(done: Retraining) -> dict[str, object]:
    from dataclasses import asdict

    return {"text": f"textmill retrain: {done.line}", **asdict(done)}
