"""`textmill sync`: send what stages logged while the tracking server did not answer."""

from __future__ import annotations

from dataclasses import asdict

from typer import Exit

from textmill.cli.output import AsJson, print_json, print_table


def sync(as_json: AsJson = False) -> None:
    """Send metrics, parameters and artifacts that the tracking server has not taken yet.

    They wait on disk after a stage ran offline (TEXTMILL_OFFLINE=1) or lost the server. Sending twice adds nothing.

    Exit status: 0 all sent, 1 the server does not answer or refused something.

    Example: textmill sync
    """
    from textmill.config import resolved
    from textmill.config.layout import find_layout
    from textmill.config.sections.runtime import RuntimeConfig
    from textmill.registry.runs.spool import send_waiting, waiting_spools
    from textmill.registry.runs.store import open_client

    layout = find_layout()
    results = []
    if waiting_spools(layout.spool):
        runtime = resolved.read(layout.resolved).runtime if layout.resolved.is_file() else RuntimeConfig()
        with open_client(runtime, layout) as client:
            results = send_waiting(layout.spool, client.tracking_uri, client)
    if as_json:
        print_json({"stages": [{**asdict(result), "folder": str(result.folder)} for result in results]})
    elif results:
        rows = [[result.stage, result.run_id or "-", result.outcome, result.why] for result in results]
        print_table(("stage", "run", "outcome", "why"), rows, fixed=range(3))
    else:
        print("  Nothing waits: the tracking server has everything.")
    raise Exit(int(any(result.outcome not in ("sent", "in use") for result in results)))
