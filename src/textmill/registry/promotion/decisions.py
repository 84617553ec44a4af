"""The stored decision of a promotion: `decision.json` and the model card, artifacts of the version's run.

They are stored before any alias moves, with the outcome `pending`; the outcome is written when it is known.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.files import read_json, write_json
from textmill.registry.promotion.events import Event
from textmill.registry.runs.addresses import require_run_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from textmill.registry.promotion.measuring import FetchedVersion

DECISION_FILE = "decision.json"
CARD_FILE = "model_card.md"
PENDING = {"outcome": "pending", "words": "see `textmill history` for the outcome"}


def store_decision(client: MlflowClient, fetched: FetchedVersion, event: Event, decision: dict[str, Any]) -> str:
    """Store decision and model card with the version's run; return their address."""
    version, run_id = fetched.version, require_run_id(fetched.version)
    place = f"promotion/version-{version.version}/{event.id}"
    address = f"runs:/{run_id}/{place}"
    outcome = PENDING if event.outcome == "moved" else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        content = {**asdict(event), **decision, **outcome, "decision": address, "model": version.name}
        write_json(folder / DECISION_FILE, content)
        card = fetched.folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {version.name} version {version.version}\n"
        (folder / CARD_FILE).write_text(text + _section(version.name, event, decision), encoding="utf-8")
        client.log_artifacts(run_id, str(folder), place)
    return address


def record_outcome(client: MlflowClient, event: Event) -> None:
    """Write the event's outcome into its stored decision.

    The history decides if this fails: the decision then stays `pending`, which is not wrong.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if event.decision is None:
        return
    run_id, _, place = event.decision.removeprefix("runs:/").partition("/")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(client.download_artifacts(run_id, f"{place}/{DECISION_FILE}", scratch))
            changed = {"outcome": event.outcome, "words": event.words, "anchor": event.anchor}
            write_json(path, read_json(path) | changed)
            client.log_artifact(run_id, str(path), place)
    except (MlflowException, RequestException, OSError):
        return


def _section(name: str, event: Event, decision: dict[str, Any]) -> str:
    """Return the decision as a section of the model card."""
    opponent = f"version {event.champion}" if event.champion else "no champion"
    lines = [f"- {check['status']}: {check['words']}" for check in decision["checks"]]
    title = f"{name} version {event.version} compared with {opponent}, {event.time}, by {event.user}: {event.verdict}."
    return "\n".join(["", "## Promotion", "", title, "", *lines, ""])
