"""The model card of a registered version: the exported card, its origin and its promotions."""

from __future__ import annotations

from collections.abc import Iterator

from textmill.config.layout import Layout
from textmill.registry.lineage.lineage import Origin, exported_folder, lineage
from textmill.registry.promotion.events import read_events
from textmill.registry.runs.store import tracking_errors

CARD_FILE = "README.md"


def version_card(origin: Origin, layout: Layout) -> str:
    """Return the card as Markdown.

    Raises:
        UserError: A file was changed, or the store cannot be reached.
    """
    exported = (exported_folder(origin, layout) / CARD_FILE).read_text(encoding="utf-8")
    return "\n".join([exported.rstrip(), "", *_registered(origin), *_decisions(origin)]) + "\n"


def _registered(origin: Origin) -> Iterator[str]:
    parts = lineage(origin)
    version, run, commit, lock = (parts[name] for name in ("version", "run", "commit", "lock"))
    aliases = f", {', '.join(version['aliases'])}" if version["aliases"] else ""
    rows = {
        "version": f"{origin.name}{aliases}",
        "registered": version["registered"],
        "run": f"{run['run_id']} ({run['name'] or 'no longer in the store'})",
        "git commit": f"{commit['commit'] or 'unknown'}{' with uncommitted changes' if origin.dirty else ''}",
        "dvc.lock": f"{lock['sha256_before_register'] or 'unknown'}, in {lock['found_in'] or 'no known place'}",
        "manifest": version["manifest_sha256"],
        "weights": version["weights_sha256"],
        **{f"{name} data": digest for name, digest in parts["data"].items()},
        "environment": f"{parts['environment']['sha256']}, Python {parts['environment']['python'] or 'unknown'}",
    }
    yield from ("## Origin", "", "| | |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in rows.items())
    yield from ("", "Digests are SHA-256. `textmill verify` checks them against repository and cache.")


def _decisions(origin: Origin) -> Iterator[str]:
    """Describe the promotions and rollbacks that involve this version, from the model's tags."""
    import mlflow

    with tracking_errors(origin.store):
        events = read_events(mlflow.MlflowClient().get_registered_model(origin.version.name).tags)
    number = str(origin.version.version)
    involved = [event for event in events if number in (event.version, event.champion)]
    if not involved:
        return
    yield from ("", "## Promotions", "", "| time | action | outcome | user | reason |", "|---|---|---|---|---|")
    for event in involved:
        action = f"{event.action} of version {event.version} over {event.champion or 'none'}"
        reason = " ".join(f"{event.reason} {event.words}".split()).replace("|", "/")
        verdict = f" ({event.verdict})" if event.verdict else ""
        yield f"| {event.time} | {action} | {event.outcome}{verdict} | {event.user} | {reason} |"
