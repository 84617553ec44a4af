"""Promote a version to champion: measure it with the champion, run the gate, move the aliases under a lock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.config.resolved import read as read_resolved
from textmill.config.schema import PipelineConfig
from textmill.config.sections.gate import GateConfig
from textmill.errors import UserError
from textmill.evaluation.gate import GateInputs, Verdict, deciding_inputs, judge
from textmill.predicting.exported import TamperedError
from textmill.registry.promotion.aliases import (
    Aliases,
    AliasMove,
    move_aliases,
    read_aliases,
    record,
    recover,
    recover_locked,
)
from textmill.registry.promotion.decisions import store_decision
from textmill.registry.promotion.events import (
    Event,
    Outcome,
    anchors,
    earlier_champions,
    event_stamp,
    existing_versions,
    history,
    last_champion,
    read_events,
    record_event,
)
from textmill.registry.promotion.lock import promotion_lock
from textmill.registry.promotion.looks import take_look
from textmill.registry.promotion.measuring import FetchedVersion, fetch_verified, measure
from textmill.registry.runs.addresses import find_version, model_name, require_model
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import open_client
from textmill.registry.versions.versions import CHALLENGER

if TYPE_CHECKING:
    from mlflow import MlflowClient

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

    The version is also compared with the anchor, the best version proven so far. It is refused without a
    verdict if the files of any of them were changed. Without `address` it is the challenger of this project's
    model. `dry_run` moves nothing and stores only that it looked at the evaluation set.

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
            others = _opponents(client, name, number, before.champion)
            versions = [version, *(client.get_model_version(name, other) for other in others)]
            fetched = [fetch_verified(one, layout) for one in versions]
            take = lambda seen: take_look(client, name, seen.digest, number, others[0], seen.sketch)  # noqa: E731
            verdict, decision = _run_gate(fetched, layout, config.gate, take)
        except TamperedError as error:
            event = replace(started, words=str(error).rstrip("."))
            if not dry_run:
                record_event(client, name, event)
            return Promotion(name, event, {**asdict(event), "checks": []}, recovered, dry_run)
        event = replace(
            started,
            outcome=_OUTCOMES[verdict.status],
            verdict=verdict.status,
            words="; ".join(verdict.reasons),
            evaluation_set=next(
                (rows["sha256"] for rows in decision["unseen"] if rows["decides"]), decision["evaluation_set"]["sha256"]
            ),
            look=decision["look"],
            anchor=decision["anchor"],
        )
        if not dry_run:
            event = replace(event, decision=store_decision(client, fetched[0], event, decision))
            event = complete_promotion(client, name, event)
    return Promotion(name, event, {**asdict(event), **decision}, recovered, dry_run)


def history_of(name: str | None, layout: Layout) -> dict[str, Any]:
    """Return the history of a registered model (None: this project's), after recovery of an interrupted move.

    Raises:
        UserError: The model is not registered, or the store does not answer.
    """
    with open_client(current_configuration(layout).runtime, layout) as client:
        name = require_model(client, name or model_name(client, layout))
        recovered = recover(client, name)
        return {**history(client, name), "recovered": recovered}


def complete_promotion(client: MlflowClient, name: str, event: Event) -> Event:
    """Move the aliases, or record the refusal; the version's tags and its decision get the outcome.

    Nothing moves if the champion changed since the measurement. The lock covers all of it, because two
    promotions of one version would write the same tags.
    """
    with promotion_lock(client, name, client.tracking_uri) as lock:
        recover_locked(client, name, lock)
        now = read_aliases(client, name)
        if event.outcome == "moved" and now.champion != event.champion:
            event = replace(
                event,
                outcome="stale champion",
                words=f"compared with version {event.champion or 'none'}, but the champion is now "
                f"version {now.champion or 'none'}",
            )
        if event.outcome == "moved":
            existing = existing_versions(client, name) - {event.version}
            previous = next((one for one in (now.champion, now.previous) if one in existing), None)
            after = Aliases(champion=event.version, previous=previous)
            move_aliases(client, name, AliasMove(now, after, event), lock)
        else:
            record(client, name, event, lock)
    return event


def _opponents(client: MlflowClient, name: str, version: str, champion: str | None) -> list[str]:
    """Return the versions to compare with: champion and anchor, as far as they exist.

    If the champion was deleted, the latest champion before it takes its place, so that a deletion does not
    open the gate. Without a champion for another reason, the promotion is a first one.
    """
    events = read_events(client.get_registered_model(name).tags)
    existing = existing_versions(client, name) - {version}
    last = champion or last_champion(events)
    if champion is None and last in existing | {version}:
        return []  # the alias was removed on purpose
    champions = ([champion] if champion else []) + earlier_champions(events, last)
    living = [one for one in champions if one in existing]
    if not living:
        return []
    anchor = next((one for one in anchors(events, living[0]) if one in existing), living[0])
    return list(dict.fromkeys([living[0], anchor]))


def _run_gate(
    versions: list[FetchedVersion], layout: Layout, gate: GateConfig, take: Callable[[GateInputs], int]
) -> tuple[Verdict, dict[str, Any]]:
    """Return the verdict, and the decision with all measurements; `take` counts a look at the evaluation set."""
    material = measure(versions, layout, gate)
    deciding = deciding_inputs(material, gate)
    if material.champion is not None and deciding is not None:
        material = replace(material, look=take(deciding))
    verdict = judge(material, gate)
    measured = {"challenger": material.challenger, "champion": material.champion, "anchor": material.anchor}
    numbers = [str(fetched.version.version) for fetched in versions]
    anchor = numbers[
        len((deciding or material).opponents)
    ]  # the last opponent: the anchor, or the champion in its place
    decision = {
        **verdict.as_dict(),
        "gate": gate.model_dump(mode="json"),
        "evaluation_set": {"split": "test", "sha256": material.digest, "rows": len(material.frame)},
        "unseen": [
            {
                "split": rows.owner,
                "rows": rows.total,
                "unseen": len(rows.inputs.frame),
                "seen": dict(rows.seen),
                "sha256": rows.inputs.digest,
                "decides": deciding is not None and deciding.digest == rows.inputs.digest,
            }
            for rows in material.unseen
        ],
        "look": material.look if material.champion is not None and deciding is not None else None,
        "anchor": numbers[0] if verdict.proven_better else anchor,
        "versions": {
            role: {
                "version": str(fetched.version.version),
                "run_id": fetched.version.run_id,
                "manifest_sha256": fetched.version.tags.get(f"{PREFIX}manifest_sha256"),
                "costs": asdict(one.costs),
            }
            for fetched, (role, one) in zip(versions, measured.items(), strict=False)
            if one is not None
        },
    }
    return verdict, decision
