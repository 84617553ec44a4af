"""Going back to the previous champion, after it has shown that it is whole and answers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.registry.promotion.aliases import Aliases, Intent, move, read_aliases, recover, recover_held
from textmill.registry.promotion.history import Event, events_of, predecessor, record, stamp
from textmill.registry.promotion.lock import promotion_lock
from textmill.registry.promotion.measuring import fetched
from textmill.registry.promotion.promotion import configuration
from textmill.registry.runs.addresses import model_name
from textmill.registry.runs.store import open_store, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Rollback:
    """How a rollback ended; `recovered` says what an earlier command had left."""

    model: str
    event: Event
    recovered: str | None

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"model": self.model, "recovered": self.recovered, **asdict(self.event)}


def rollback(name: str | None, layout: Layout, *, reason: str) -> Rollback:
    """Make the version under alias `previous` the champion again.

    Its files are fetched anew and held against their digests, and it must answer. `previous` then
    goes to the version that it had replaced itself, so that rolling back twice goes back two steps.

    Args:
        name: Of the registered model; None is this project's.
        layout: The project.
        reason: Why, for the history.

    Raises:
        UserError: There is no champion or no previous one, or the store does not answer.
    """
    config = configuration(layout)
    uri = open_store(config.runtime, layout)
    import mlflow

    client = mlflow.MlflowClient()
    with tracking_errors(uri):
        name = name or model_name(client, layout)
        recovered = recover(client, name, uri)
        before = read_aliases(client, name)
        if before.champion is None or before.previous is None:
            missing = "champion" if before.champion is None else "previous champion"
            raise UserError(f"{name} has no {missing}", fix="Look at `textmill history`")
        event = Event(
            **stamp(),
            action="rollback",
            version=before.previous,
            champion=before.champion,
            outcome="moved",
            reason=reason,
        )
        problem = _problem(client.get_model_version(name, before.previous), layout, config.gate.precision)
        if problem is not None:
            event = replace(event, outcome="refused", words=problem)
            record(client, name, event)
        else:
            event = _settle(client, name, uri, event, before)
    return Rollback(name, event, recovered)


def _settle(client: MlflowClient, name: str, uri: str, event: Event, before: Aliases) -> Event:
    """Move the aliases when they are still those that were looked at."""
    with promotion_lock(client, name, uri) as held:
        recover_held(client, name, held)
        model = client.get_registered_model(name)
        now = read_aliases(client, name)
        if (now.champion, now.previous) != (before.champion, before.previous):
            words = f"the champion is now version {now.champion or 'none'}, no more version {before.champion}"
            event = replace(event, outcome="stale champion", words=words)
            held.check()
            record(client, name, event)
            return event
        earlier = predecessor(events_of(model.tags), event.version)
        if earlier is not None and not _exists(client, name, earlier):
            earlier = None
        after = Aliases(champion=event.version, previous=earlier)
        move(client, name, Intent(now, after, event), held)
    return event


def _problem(version: ModelVersion, layout: Layout, precision: Any) -> str | None:
    """Why the version must not serve, or None."""
    from textmill.predicting.loading import load_predictor

    try:
        predictor = load_predictor(fetched(version, layout, fresh=True).folder, precision)
        answers = predictor.predict(predictor.task.example_inputs())
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever a damaged graph raises: it does not answer
        return f"version {version.version} does not answer: {' '.join(str(error).split())[:300]}"
    if not answers or not _finite(answers):
        return f"version {version.version} answers with no finite number"
    return None


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _exists(client: MlflowClient, name: str, version: str) -> bool:
    return any(str(found.version) == version for found in client.search_model_versions(f"name = '{name}'"))
