"""Roll back to the previous champion after checking its digests and answers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.registry.promotion.aliases import Aliases, AliasMove, move_aliases, read_aliases, recover, recover_locked
from textmill.registry.promotion.events import (
    Event,
    earlier_champions,
    event_stamp,
    existing_versions,
    last_champion,
    read_events,
    record_event,
)
from textmill.registry.promotion.lock import promotion_lock
from textmill.registry.promotion.measuring import fetch_verified
from textmill.registry.promotion.promotion import current_configuration
from textmill.registry.runs.addresses import model_name, require_model
from textmill.registry.runs.store import open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Rollback:
    """The result of a rollback; `recovered` describes the interrupted move completed or undone first."""

    model: str
    event: Event
    recovered: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"model": self.model, "recovered": self.recovered, **asdict(self.event)}


def rollback(name: str | None, layout: Layout, *, reason: str) -> Rollback:
    """Make the version with the alias `previous` the champion again; without `name`, of this project's model.

    Deleted versions are skipped: if the champion or the previous one was deleted, the latest champion
    before them that still exists is restored. Its files are downloaded again and verified, and it must
    answer. `previous` then moves to the one before it, so that a second rollback goes back another step.

    Raises:
        UserError: There is no previous champion that exists, or the store does not answer.
    """
    config = current_configuration(layout)
    with open_client(config.runtime, layout) as client:
        name = require_model(client, name or model_name(client, layout))
        recovered = recover(client, name)
        before = read_aliases(client, name)
        target = next(iter(_restorable(client, name, before)), None)
        if target is None:
            raise UserError(f"{name} has no previous champion that still exists", fix="See `textmill history`")
        event = Event(
            **event_stamp(),
            action="rollback",
            version=target,
            champion=before.champion,
            outcome="moved",
            reason=reason,
        )
        problem = _problem(client.get_model_version(name, target), layout, config.gate.precision)
        if problem is not None:
            event = replace(event, outcome="refused", words=problem)
            record_event(client, name, event)
        else:
            event = _complete_rollback(client, name, event, before)
    return Rollback(name, event, recovered)


def _complete_rollback(client: MlflowClient, name: str, event: Event, before: Aliases) -> Event:
    """Move the aliases if they have not changed since `before`."""
    with promotion_lock(client, name, client.tracking_uri) as lock:
        recover_locked(client, name, lock)
        now = read_aliases(client, name)
        if (now.champion, now.previous) != (before.champion, before.previous):
            words = f"the champion is now version {now.champion or 'none'}, no longer version {before.champion}"
            event = replace(event, outcome="stale champion", words=words)
            lock.check()
            record_event(client, name, event)
            return event
        earlier = earlier_champions(read_events(client.get_registered_model(name).tags), event.version)
        existing = existing_versions(client, name)
        after = Aliases(champion=event.version, previous=next((one for one in earlier if one in existing), None))
        move_aliases(client, name, AliasMove(now, after, event), lock)
    return event


def _restorable(client: MlflowClient, name: str, now: Aliases) -> list[str]:
    """Return the existing earlier champions, latest first."""
    events = read_events(client.get_registered_model(name).tags)
    earlier = earlier_champions(events, now.champion or last_champion(events))
    candidates = dict.fromkeys([now.previous, *earlier] if now.previous else earlier)
    existing = existing_versions(client, name)
    return [version for version in candidates if version in existing and version != now.champion]


def _problem(version: ModelVersion, layout: Layout, precision: Any) -> str | None:
    """Return the reason why the version must not serve, or None."""
    from textmill.predicting.loading import load_predictor

    try:
        predictor = load_predictor(fetch_verified(version, layout, fresh=True).folder, precision)
        answers = predictor.predict(predictor.task.example_inputs())
    except UserError as error:
        return str(error)
    except Exception as error:  # a damaged graph can raise anything
        return f"version {version.version} does not answer: {' '.join(str(error).split())[:300]}"
    if not answers or not _finite(answers):
        return f"version {version.version} gives answers that are not finite numbers"
    return None


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
