"""Moving the aliases `champion`, `previous` and `challenger` so that a kill leaves nothing half-moved.

MLflow moves one alias at a time. Before the first move the whole plan is written into a tag of the
registered model, and removed after the last. Whoever finds a plan, with the lock in hand, completes
it when the champion has moved already and undoes it otherwise; both may be repeated.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from textmill.registry.promotion.history import Event, record
from textmill.registry.promotion.lock import Held, promotion_lock
from textmill.registry.runs.origin import PREFIX
from textmill.registry.versions.versions import CHALLENGER, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from mlflow import MlflowClient

INTENT = f"{PREFIX}intent"
_NOBODYS = "textmill-nobody"
"""An alias that no version bears; taking it away changes nothing."""


@dataclass(frozen=True)
class Aliases:
    """Which version bears which alias; None: none does.

    `challenger` is taken away from whoever becomes champion, and else left to the stage `register`.
    """

    champion: str | None = None
    previous: str | None = None
    challenger: str | None = None


@dataclass(frozen=True)
class Intent:
    """A plan: the aliases before and after, and the event that it is."""

    before: Aliases
    after: Aliases
    event: Event

    def as_tag(self) -> str:
        """The tag's value."""
        plan = {"before": asdict(self.before), "after": asdict(self.after), "event": self.event.as_tag()}
        return json.dumps(plan, ensure_ascii=False)

    @classmethod
    def from_tag(cls, value: str) -> Intent:
        """Read a tag's value."""
        plan = json.loads(value)
        return cls(Aliases(**plan["before"]), Aliases(**plan["after"]), Event.from_tag(plan["event"]))


def read_aliases(client: MlflowClient, name: str) -> Aliases:
    """The three aliases as they stand."""
    found = client.get_registered_model(name).aliases
    return Aliases(*(str(found[alias]) if alias in found else None for alias in (CHAMPION, PREVIOUS, CHALLENGER)))


def move(client: MlflowClient, name: str, intent: Intent, held: Held) -> None:
    """Carry a plan out. The order decides what `recover` finds: the champion moves in one step."""
    held.check()
    # A server with users may let this one set aliases but not take one away: better told now than half-way.
    client.delete_registered_model_alias(name, _NOBODYS)
    client.set_registered_model_tag(name, INTENT, intent.as_tag())
    _finish(client, name, intent, held)


def recover(client: MlflowClient, name: str, uri: str) -> str | None:
    """Complete or undo what a killed command left; says in words what was done, None when nothing was.

    Raises:
        UserError: The lock is not to be had.
    """
    if INTENT not in client.get_registered_model(name).tags:
        return None
    with promotion_lock(client, name, uri) as held:
        return recover_held(client, name, held)


def recover_held(client: MlflowClient, name: str, held: Held) -> str | None:
    """The same for who holds the lock already."""
    left = client.get_registered_model(name).tags.get(INTENT)
    if left is None:
        return None
    intent = Intent.from_tag(left)
    found = read_aliases(client, name)
    event = intent.event
    said = f"the {event.action} of version {event.version}, begun {event.time} by {event.user} and cut off,"
    if found.champion == intent.after.champion:
        _finish(client, name, intent, held)
        return f"{said} was completed"
    undone = replace(event, outcome="undone", words="cut off before the champion moved")
    _set(client, name, PREVIOUS, found.previous, intent.before.previous, held)
    held.check()
    record(client, name, undone)
    client.delete_registered_model_tag(name, INTENT)
    return f"{said} was undone"


def _finish(client: MlflowClient, name: str, intent: Intent, held: Held) -> None:
    """What is left to do of a plan; each step may have been done before."""
    found = read_aliases(client, name)
    _set(client, name, PREVIOUS, found.previous, intent.after.previous, held)
    _set(client, name, CHAMPION, found.champion, intent.after.champion, held)
    if found.challenger == intent.after.champion:
        _set(client, name, CHALLENGER, found.challenger, None, held)
    held.check()
    record(client, name, intent.event)
    held.check()
    client.delete_registered_model_tag(name, INTENT)


def _set(client: MlflowClient, name: str, alias: str, found: str | None, wanted: str | None, held: Held) -> None:
    if found == wanted:
        return
    held.check()
    if wanted is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, wanted)
