"""Promote a version to champion: measure it with the champion, run the gate, move the aliases under a lock."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.config.resolved import read as read_resolved
from textmill.config.schema import PipelineConfig
from textmill.config.sections.gate import GateConfig
from textmill.errors import UserError
from textmill.evaluation.gate import Verdict, judge
from textmill.files import write_json
from textmill.predicting.exported import TamperedError
from textmill.registry.promotion.aliases import Aliases, AliasMove, move_aliases, read_aliases, recover, recover_locked
from textmill.registry.promotion.events import Event, Outcome, event_stamp, history, record_event
from textmill.registry.promotion.lock import promotion_lock
from textmill.registry.promotion.measuring import FetchedVersion, fetch_verified, measure
from textmill.registry.runs.addresses import find_version, model_name, require_run_id
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import open_client
from textmill.registry.versions.versions import CHALLENGER

if TYPE_CHECKING:
    from mlflow import MlflowClient

DECISION_FILE = "decision.json"
CARD_FILE = "model_card.md"

_OUTCOMES: dict[str, Outcome] = {"pass": "moved", "fail": "refused", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion.

    Attributes:
        event: The event recorded in the history; with `dry_run`, the one that would be.
        decision: All measurements and checks.
        recovered: The interrupted move that was completed or undone first, as a sentence, or None.
        dry_run: Whether nothing was stored or moved.
    """

    model: str
    event: Event
    decision: dict[str, Any]
    recovered: str | None
    dry_run: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "model": self.model,
            "dry_run": self.dry_run,
            "recovered": self.recovered,
            **asdict(self.event),
            "decision": self.decision,
            "decision_address": self.event.decision,
        }


def current_configuration(layout: Layout) -> PipelineConfig:
    """Compose the configuration of `conf/` and `params.yaml`; without `conf/`, read the last composed one.

    The gate applies as declared now, even if `conf/gate/` was edited after the last `dvc repro`.
    """
    if (layout.conf / "config.yaml").is_file():
        from textmill.config.compose import compose

        return compose(layout)
    return read_resolved(layout.resolved)


def promote(address: str | None, layout: Layout, *, reason: str = "", dry_run: bool = False) -> Promotion:
    """Measure a version with the champion, run the gate, and make the version champion if it passes.

    The gate uses the prepared test split. The version is refused without a verdict if the files of either
    version were changed. Without `address` it is the challenger of this project's model. `dry_run` stores
    and moves nothing.

    Raises:
        UserError: The version does not exist or is champion already, there is no prepared data, or the
            store does not answer.
    """
    config = current_configuration(layout)
    with open_client(config.runtime, layout) as client:
        version = find_version(address or CHALLENGER, client, layout)
        name, number = version.name, str(version.version)
        recovered = None if dry_run else recover(client, name)
        before = read_aliases(client, name)
        if before.champion == number:
            raise UserError(f"{name} version {number} is the champion already", fix="Name another version")
        started = Event(
            **event_stamp(),
            action="promotion",
            version=number,
            champion=before.champion,
            outcome="refused",
            reason=reason,
        )
        try:
            versions = [fetch_verified(version, layout)]
            if before.champion is not None:
                versions.append(fetch_verified(client.get_model_version(name, before.champion), layout))
        except TamperedError as error:
            event = replace(started, words=str(error).rstrip("."))
            if not dry_run:
                record_event(client, name, event)
            return Promotion(name, event, {**asdict(event), "checks": []}, recovered, dry_run)
        verdict, decision = _run_gate(versions, layout, config.gate)
        event = replace(
            started, outcome=_OUTCOMES[verdict.status], verdict=verdict.status, words="; ".join(verdict.reasons)
        )
        if not dry_run:
            event = replace(event, decision=_store(client, versions[0], event, decision))
            event = complete_promotion(client, name, event)
    return Promotion(name, event, {**asdict(event), **decision}, recovered, dry_run)


def history_of(name: str | None, layout: Layout) -> dict[str, Any]:
    """Return the history of a registered model (None: this project's), after recovery of an interrupted move.

    Raises:
        UserError: The model is not registered, or the store does not answer.
    """
    with open_client(current_configuration(layout).runtime, layout) as client:
        name = name or model_name(client, layout)
        recovered = recover(client, name)
        return {**history(client, name), "recovered": recovered}


def complete_promotion(client: MlflowClient, name: str, event: Event) -> Event:
    """Tag the version with its verdict, then move the aliases or record the refusal.

    Nothing moves if the champion changed since the measurement. The lock covers all of it, because two
    promotions of one version would write the same tags.
    """
    with promotion_lock(client, name, client.tracking_uri) as lock:
        recover_locked(client, name, lock)
        lock.check()
        tags = {"verdict": event.verdict or "", "decided": event.time, "decision": event.decision or ""}
        for key, value in tags.items():
            client.set_model_version_tag(name, event.version, f"{PREFIX}{key}", value)
        now = read_aliases(client, name)
        if event.outcome == "moved" and now.champion != event.champion:
            event = replace(
                event,
                outcome="stale champion",
                words=f"compared with version {event.champion or 'none'}, but the champion is now "
                f"version {now.champion or 'none'}",
            )
        lock.check()
        if event.outcome == "moved":
            after = Aliases(champion=event.version, previous=now.champion)
            move_aliases(client, name, AliasMove(now, after, event), lock)
        else:
            record_event(client, name, event)
    return event


def _run_gate(versions: list[FetchedVersion], layout: Layout, gate: GateConfig) -> tuple[Verdict, dict[str, Any]]:
    """Return the verdict, and the decision with all measurements."""
    material = measure(versions, layout, gate)
    verdict = judge(material, gate)
    measured = [one for one in (material.challenger, material.champion) if one is not None]
    decision = {
        **verdict.as_dict(),
        "gate": gate.model_dump(mode="json"),
        "evaluation_set": {"split": "test", "sha256": material.digest, "rows": len(material.frame)},
        "versions": {
            role: {
                "version": str(fetched.version.version),
                "run_id": fetched.version.run_id,
                "manifest_sha256": fetched.version.tags.get(f"{PREFIX}manifest_sha256"),
                "costs": asdict(one.costs),
            }
            for role, fetched, one in zip(("challenger", "champion"), versions, measured, strict=False)
        },
    }
    return verdict, decision


def _store(client: MlflowClient, fetched: FetchedVersion, event: Event, decision: dict[str, Any]) -> str:
    """Store decision and model card with the version's run; return their address."""
    version, run_id = fetched.version, require_run_id(fetched.version)
    place = f"promotion/version-{version.version}/{event.id}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_json(folder / DECISION_FILE, {**asdict(event), **decision, "model": version.name})
        card = fetched.folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {version.name} version {version.version}\n"
        (folder / CARD_FILE).write_text(text + _section(version.name, event, decision), encoding="utf-8")
        client.log_artifacts(run_id, str(folder), place)
    return f"runs:/{run_id}/{place}"


def _section(name: str, event: Event, decision: dict[str, Any]) -> str:
    """Return the decision as a section of the model card."""
    opponent = f"version {event.champion}" if event.champion else "no champion"
    lines = [f"- {check['status']}: {check['words']}" for check in decision["checks"]]
    title = f"{name} version {event.version} compared with {opponent}, {event.time}, by {event.user}: {event.verdict}."
    return "\n".join(["", "## Promotion", "", title, "", *lines, ""])
