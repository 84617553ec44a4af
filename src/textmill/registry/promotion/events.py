"""Events of a registered model: one tag for each promotion and rollback."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from textmill.registry.runs.origin import PREFIX, user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVENT = f"{PREFIX}event."
UNKNOWN_USER = "unknown"

Action = Literal["promotion", "rollback"]
Outcome = Literal["moved", "refused", "inconclusive", "stale champion", "undone"]

_MAX_CHARACTERS = 1200  # of reason and words, so that an event fits into a tag of PostgreSQL (5,000)


@dataclass(frozen=True)
class Event:
    """One attempt to change the champion.

    Attributes:
        id: Identifier; sorts by time.
        time: UTC, ISO 8601.
        user: User of the tracking server, else of the machine.
        action: The requested action.
        version: The version to become champion.
        champion: The champion before, or None.
        outcome: `moved` if the alias moved.
        verdict: Verdict of the gate; None for a rollback.
        reason: Reason given by the user.
        words: Explanation of the outcome.
        decision: Address of the stored decision: `runs:/RUN_ID/FOLDER`.
    """

    id: str
    time: str
    user: str
    action: Action
    version: str
    champion: str | None
    outcome: Outcome
    verdict: str | None = None
    reason: str = ""
    words: str = ""
    decision: str | None = None

    @property
    def key(self) -> str:
        """Name of the event's tag."""
        return f"{EVENT}{self.id}"

    def as_tag(self) -> str:
        """Return the tag's value."""
        short = {"reason": self.reason[:_MAX_CHARACTERS], "words": self.words[:_MAX_CHARACTERS]}
        return json.dumps({**asdict(self), **short}, ensure_ascii=False)

    @classmethod
    def from_tag(cls, value: str) -> Event:
        """Parse a tag's value."""
        return cls(**json.loads(value))


def event_stamp() -> dict[str, str]:
    """Return id, time and user of an event that happens now."""
    now = datetime.now(UTC)
    return {
        "id": f"{now:%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:6]}",
        "time": now.isoformat(timespec="seconds"),
        "user": user_name() or UNKNOWN_USER,
    }


def read_events(tags: Mapping[str, str]) -> list[Event]:
    """Return the events among a registered model's tags, oldest first."""
    events = [Event.from_tag(value) for key, value in tags.items() if key.startswith(EVENT)]
    return sorted(events, key=lambda event: event.id)


def record_event(client: MlflowClient, name: str, event: Event) -> None:
    """Write an event; writing it again changes nothing."""
    client.set_registered_model_tag(name, event.key, event.as_tag())


def history(client: MlflowClient, name: str) -> dict[str, Any]:
    """Return the events of a model, its aliases, and whether the champion was moved by other means."""
    model = client.get_registered_model(name)
    events = read_events(model.tags)
    last = next((event.version for event in reversed(events) if event.outcome == "moved"), None)
    champion = model.aliases.get("champion")
    return {
        "model": name,
        "aliases": {alias: str(version) for alias, version in sorted(model.aliases.items())},
        "moved_elsewhere": (str(champion) if champion is not None else None) != last,
        "events": [asdict(event) for event in events],
    }


def replaced_version(events: list[Event], version: str) -> str | None:
    """Return the champion that a version replaced in its last promotion, or None."""
    promotions = (event for event in reversed(events) if event.action == "promotion" and event.outcome == "moved")
    return next((event.champion for event in promotions if event.version == version), None)
