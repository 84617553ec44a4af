"""Promoting a version to champion: measured beside the champion, judged by the gate, moved under a lock."""

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
from textmill.registry.promotion.aliases import (
    Aliases,
    Intent,
    move,
    read_aliases,
    recover,
    recover_held,
)
from textmill.registry.promotion.history import Event, Outcome, history, record, stamp
from textmill.registry.promotion.lock import promotion_lock
from textmill.registry.promotion.measuring import Side, fetched, measure
from textmill.registry.runs.addresses import find_version, model_name, run_id_of
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import open_store, tracking_errors
from textmill.registry.versions.versions import CHALLENGER

if TYPE_CHECKING:
    from mlflow import MlflowClient

DECISION_FILE = "decision.json"
CARD_FILE = "model_card.md"

_OUTCOMES: dict[str, Outcome] = {"pass": "moved", "fail": "refused", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class Promotion:
    """How a promotion ended.

    Attributes:
        model: Name of the registered model.
        event: As the history has it; with `dry_run`, as it would have it.
        decision: Everything that was measured and judged.
        recovered: What an earlier command had left, in words.
        dry_run: Nothing was stored or moved.
    """

    model: str
    event: Event
    decision: dict[str, Any]
    recovered: str | None
    dry_run: bool

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "model": self.model,
            "dry_run": self.dry_run,
            "recovered": self.recovered,
            **asdict(self.event),
            "decision": self.decision,
            "decision_address": self.event.decision,
        }


def configuration(layout: Layout) -> PipelineConfig:
    """The configuration as `conf/` and `params.yaml` say now; without them, as it was last composed.

    The gate must be the declared one even when `conf/gate/` was edited after the last `dvc repro`.
    """
    if (layout.conf / "config.yaml").is_file():
        from textmill.config.compose import compose

        return compose(layout)
    return read_resolved(layout.resolved)


def promote(address: str | None, layout: Layout, *, reason: str = "", dry_run: bool = False) -> Promotion:
    """Measure a version beside the champion, judge it, and make it champion when it passes.

    It is refused without a verdict when it or the champion was tampered with.

    Args:
        address: Of the version; None is the alias `challenger` of this project's model.
        layout: The project; its prepared test split is the evaluation set.
        reason: Why, for the history.
        dry_run: Only measure and judge.

    Raises:
        UserError: There is no such version, it is champion already, there is no prepared data, or
            the store does not answer.
    """
    config = configuration(layout)
    uri = open_store(config.runtime, layout)
    import mlflow

    client = mlflow.MlflowClient()
    with tracking_errors(uri):
        version = find_version(address or CHALLENGER, client, layout)
        name, number = version.name, str(version.version)
        recovered = None if dry_run else recover(client, name, uri)
        before = read_aliases(client, name)
        if before.champion == number:
            raise UserError(f"{name} version {number} is the champion already", fix="Name another version")
        begun = Event(
            **stamp(), action="promotion", version=number, champion=before.champion, outcome="refused", reason=reason
        )
        try:
            sides = [fetched(version, layout)]
            if before.champion is not None:
                sides.append(fetched(client.get_model_version(name, before.champion), layout))
        except TamperedError as error:
            event = replace(begun, words=str(error).rstrip("."))
            if not dry_run:
                record(client, name, event)
            return Promotion(name, event, {**asdict(event), "checks": []}, recovered, dry_run)
        verdict, decision = _judged(sides, layout, config.gate)
        event = replace(
            begun, outcome=_OUTCOMES[verdict.status], verdict=verdict.status, words="; ".join(verdict.reasons)
        )
        if not dry_run:
            event = replace(event, decision=_store(client, sides[0], event, decision))
            event = settle(client, name, uri, event)
    return Promotion(name, event, {**asdict(event), **decision}, recovered, dry_run)


def history_of(name: str | None, layout: Layout) -> dict[str, Any]:
    """The history of a registered model (None: this project's), and what had to be recovered first.

    Raises:
        UserError: The model is not registered, or the store does not answer.
    """
    uri = open_store(configuration(layout).runtime, layout)
    import mlflow

    client = mlflow.MlflowClient()
    with tracking_errors(uri):
        name = name or model_name(client, layout)
        recovered = recover(client, name, uri)
        return {**history(client, name), "recovered": recovered}


def settle(client: MlflowClient, name: str, uri: str, event: Event) -> Event:
    """Act on a judged promotion: note its decision, and move the aliases or only record why not.

    The champion that the version was compared with must still be it; else nothing moves. All of it
    happens under the lock: two promotions of one version would write the same tags.
    """
    with promotion_lock(client, name, uri) as held:
        recover_held(client, name, held)
        held.check()
        _note(client, name, event)
        now = read_aliases(client, name)
        if event.outcome == "moved" and now.champion != event.champion:
            event = replace(
                event,
                outcome="stale champion",
                words=f"compared with version {event.champion or 'none'}, but the champion is now "
                f"version {now.champion or 'none'}",
            )
        held.check()
        if event.outcome == "moved":
            after = Aliases(champion=event.version, previous=now.champion)
            move(client, name, Intent(now, after, event), held)
        else:
            record(client, name, event)
    return event


def _judged(sides: list[Side], layout: Layout, gate: GateConfig) -> tuple[Verdict, dict[str, Any]]:
    """The verdict, and all that led to it."""
    material = measure(sides, layout, gate)
    verdict = judge(material, gate)
    measured = [side for side in (material.challenger, material.champion) if side is not None]
    decision = {
        **verdict.as_dict(),
        "gate": gate.model_dump(mode="json"),
        "evaluation_set": {"split": "test", "sha256": material.digest, "rows": len(material.frame)},
        "versions": {
            role: {
                "version": str(side.version.version),
                "run_id": side.version.run_id,
                "manifest_sha256": side.version.tags.get(f"{PREFIX}manifest_sha256"),
                "costs": asdict(found.costs),
            }
            for role, side, found in zip(("challenger", "champion"), sides, measured, strict=False)
        },
    }
    return verdict, decision


def _store(client: MlflowClient, side: Side, event: Event, decision: dict[str, Any]) -> str:
    """Store the decision and the card with the version's run; return their address."""
    version, run_id = side.version, run_id_of(side.version)
    place = f"promotion/version-{version.version}/{event.id}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_json(folder / DECISION_FILE, {**asdict(event), **decision, "model": version.name})
        card = side.folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {version.name} version {version.version}\n"
        (folder / CARD_FILE).write_text(text + _section(version.name, event, decision), encoding="utf-8")
        client.log_artifacts(run_id, str(folder), place)
    return f"runs:/{run_id}/{place}"


def _note(client: MlflowClient, name: str, event: Event) -> None:
    """Note the last verdict, and where its decision is, in the version's tags."""
    for key, value in {"verdict": event.verdict or "", "decided": event.time, "decision": event.decision or ""}.items():
        client.set_model_version_tag(name, event.version, f"{PREFIX}{key}", value)


def _section(name: str, event: Event, decision: dict[str, Any]) -> str:
    """The decision in the model card's form."""
    against = f"version {event.champion}" if event.champion else "no champion"
    lines = [f"- {check['status']}: {check['words']}" for check in decision["checks"]]
    title = f"{name} version {event.version} against {against}, {event.time}, by {event.user}: {event.verdict}."
    return "\n".join(["", "## Promotion", "", title, "", *lines, ""])
