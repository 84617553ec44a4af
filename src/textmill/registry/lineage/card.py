"""The model card of a registered version: the exported card, where it came from, what was decided about it."""

from __future__ import annotations

from collections.abc import Iterator

from textmill.config.layout import Layout
from textmill.registry.lineage.lineage import Origin, exported_folder, lineage
from textmill.registry.promotion.history import events_of
from textmill.registry.runs.store import tracking_errors

CARD_FILE = "README.md"


def version_card(origin: Origin, layout: Layout) -> str:
    """The card as Markdown.

    Raises:
        UserError: The artefact was tampered with, or the store cannot be reached.
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
        "run": f"{run['run_id']} ({run['name'] or 'not in the store any more'})",
        "git commit": f"{commit['commit'] or 'unknown'}{' with uncommitted changes' if origin.dirty else ''}",
        "dvc.lock": f"{lock['sha256_before_register'] or 'unknown'}, in {lock['found_in'] or 'no place'}",
        "manifest": version["manifest_sha256"],
        "weights": version["weights_sha256"],
        **{f"{name} data": digest for name, digest in parts["data"].items()},
        "environment": f"{parts['environment']['sha256']}, Python {parts['environment']['python'] or 'unknown'}",
    }
    yield from ("## Where it came from", "", "| | |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in rows.items())
    yield from ("", "Digests are SHA-256. `textmill verify` holds each of them against repository and cache.")


def _decisions(origin: Origin) -> Iterator[str]:
    """The promotions and rollbacks that this version had a part in, out of the model's tags."""
    import mlflow

    with tracking_errors(origin.store):
        events = events_of(mlflow.MlflowClient().get_registered_model(origin.version.name).tags)
    number = str(origin.version.version)
    concerned = [event for event in events if number in (event.version, event.champion)]
    if not concerned:
        return
    yield from ("", "## Decisions", "", "| when | what | outcome | by | why |", "|---|---|---|---|---|")
    for event in concerned:
        what = f"{event.action} of version {event.version} over {event.champion or 'none'}"
        why = " ".join(f"{event.reason} {event.words}".split()).replace("|", "/")
        verdict = f" ({event.verdict})" if event.verdict else ""
        yield f"| {event.time} | {what} | {event.outcome}{verdict} | {event.user} | {why} |"
