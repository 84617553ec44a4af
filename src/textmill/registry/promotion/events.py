"""Events of a registered model: one tag for each promotion and rollback."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from textmill.registry.promotion.looks import count_looks
from textmill.registry.runs.origin import PREFIX, user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVENT = f"{PREFIX}event."
UNKNOWN_USER = "unknown"

Action = Literal["promotion", "rollback", "shadow", "canary"]
Outcome = Literal["moved", "refused", "inconclusive", "stale champion", "undone", "forbidden", "taken back"]

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
        outcome: `moved` if the alias moved; `forbidden` if the server denies moving it to this user.
        verdict: Verdict of the gate; None for a rollback.
        reason: Reason given by the user.
        words: Explanation of the outcome.
        decision: Address of the stored decision: `runs:/RUN_ID/FOLDER`.
        evaluation_set: SHA-256 of the rows that the gate used; None in older histories.
        look: Number of the comparison on these rows, from 1; None without a comparison.
        anchor: Best version proven so far, if this one becomes champion; later ones are compared with it too.
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
    evaluation_set: str | None = None
    look: int | None = None
    anchor: str | None = None

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


def event_stamp() -> dict[str, Any]:
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


def existing_versions(client: MlflowClient, name: str) -> set[str]:
    """Return the numbers of the versions that were not deleted."""
    return {str(version.version) for version in client.search_model_versions(f"name = '{name}'")}


def history(client: MlflowClient, name: str) -> dict[str, Any]:
    """Return the events of a model, its aliases, anchor and looks, and how the champion was moved by other means."""
    model = client.get_registered_model(name)
    events = read_events(model.tags)
    last = last_champion(events)
    champion = model.aliases.get("champion")
    existing = existing_versions(client, name)
    return {
        "model": name,
        "aliases": {alias: str(version) for alias, version in sorted(model.aliases.items())},
        "anchor": next((version for version in anchors(events, str(champion)) if version in existing), None),
        "looks": count_looks(model.tags),
        "moved_elsewhere": (str(champion) if champion is not None else None) != last,
        "deleted_champion": last if last is not None and last not in existing else None,
        "events": [asdict(event) for event in events],
    }


def last_champion(events: Sequence[Event]) -> str | None:
    """Return the version of the last move, or None."""
    return next((event.version for event in reversed(events) if event.outcome == "moved"), None)


def earlier_champions(events: Sequence[Event], version: str | None) -> list[str]:
    """Return the champions before a version, latest first: what it replaced, what that had replaced, and so on."""
    replaced = {event.version: event.champion for event in _promotions(events)}  # the last promotion of a version
    earlier: list[str] = []
    while version is not None and (version := replaced.get(version)) is not None and version not in earlier:
        earlier.append(version)
    return earlier


def anchors(events: Sequence[Event], champion: str) -> list[str]:
    """Return the versions that may be the anchor of a champion, best first; the first that exists is.

    The champion's promotion names it. The champions that were compared with this anchor follow, oldest
    first. A champion without such a promotion is its own anchor.
    """
    promotions = _promotions(events)
    anchor = next((event.anchor for event in reversed(promotions) if event.version == champion), None)
    if anchor is None:
        return [champion]
    followers = [event.version for event in promotions if event.anchor == anchor]
    until = followers[: len(followers) - followers[::-1].index(champion)]
    return list(dict.fromkeys([anchor, *until]))


def _promotions(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.action == "promotion" and event.outcome == "moved"]
