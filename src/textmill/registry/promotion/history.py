"""What happened to a registered model: one tag of it for each promotion and rollback."""

from __future__ import annotations

import getpass
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from textmill.registry.runs.origin import PREFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVENT = f"{PREFIX}event."
UNKNOWN_USER = "unknown"

Action = Literal["promotion", "rollback"]
Outcome = Literal["moved", "refused", "inconclusive", "stale champion", "undone"]

_MOST_CHARACTERS = 1200
"""Of the reason and of the words, so that an event fits into a tag of PostgreSQL (5,000)."""


@dataclass(frozen=True)
class Event:
    """One attempt to change the champion.

    Attributes:
        id: Sorts by time.
        time: UTC, ISO 8601.
        user: Of the tracking server, else of the machine.
        action: What was asked for.
        version: That was to become champion.
        champion: That was it before; None for the first.
        outcome: `moved` when the alias moved.
        verdict: Of the gate; None for a rollback.
        reason: As the user gave it.
        words: Why it ended so.
        decision: Where the decision is stored: `runs:/RUN_ID/FOLDER`.
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
        """Name of its tag."""
        return f"{EVENT}{self.id}"

    def as_tag(self) -> str:
        """The tag's value."""
        short = {"reason": self.reason[:_MOST_CHARACTERS], "words": self.words[:_MOST_CHARACTERS]}
        return json.dumps({**asdict(self), **short}, ensure_ascii=False)

    @classmethod
    def from_tag(cls, value: str) -> Event:
        """Read a tag's value."""
        return cls(**json.loads(value))


def stamp() -> dict[str, str]:
    """Id, time and user of an event that happens now."""
    now = datetime.now(UTC)
    return {
        "id": f"{now:%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:6]}",
        "time": now.isoformat(timespec="seconds"),
        "user": _user(),
    }


def events_of(tags: Mapping[str, str]) -> list[Event]:
    """The events among a registered model's tags, oldest first."""
    found = [Event.from_tag(value) for key, value in tags.items() if key.startswith(EVENT)]
    return sorted(found, key=lambda event: event.id)


def record(client: MlflowClient, name: str, event: Event) -> None:
    """Write an event; writing it twice changes nothing."""
    client.set_registered_model_tag(name, event.key, event.as_tag())


def history(client: MlflowClient, name: str) -> dict[str, Any]:
    """All events of a model, its aliases, and whether someone moved the champion by other means."""
    model = client.get_registered_model(name)
    events = events_of(model.tags)
    last = next((event.version for event in reversed(events) if event.outcome == "moved"), None)
    champion = model.aliases.get("champion")
    return {
        "model": name,
        "aliases": {alias: str(version) for alias, version in sorted(model.aliases.items())},
        "moved_elsewhere": (str(champion) if champion is not None else None) != last,
        "events": [asdict(event) for event in events],
    }


def predecessor(events: list[Event], version: str) -> str | None:
    """Whom a version replaced when it was last promoted."""
    promotions = (event for event in reversed(events) if event.action == "promotion" and event.outcome == "moved")
    return next((event.champion for event in promotions if event.version == version), None)


def _user() -> str:
    named = os.environ.get("MLFLOW_TRACKING_USERNAME")
    try:
        return named or getpass.getuser()
    except (OSError, KeyError):
        return UNKNOWN_USER
