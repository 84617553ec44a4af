"""Move the aliases `champion`, `previous` and `challenger` so that a kill leaves no partial move.

MLflow moves one alias at a time. A tag of the registered model holds the move while it is in
progress. A process that finds this tag while it holds the lock completes the move if the champion
has moved, and undoes it otherwise. Both can be repeated.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from textmill.registry.promotion.decisions import record_outcome
from textmill.registry.promotion.events import Event, record_event
from textmill.registry.promotion.lock import HeldLock, promotion_lock
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import is_forbidden
from textmill.registry.versions.versions import CHALLENGER, CHAMPION, PREVIOUS

if TYPE_CHECKING:
    from mlflow import MlflowClient

PENDING_MOVE = f"{PREFIX}intent"
_UNUSED_ALIAS = "textmill-unused"
"""An alias that no version has; deleting it changes nothing."""


@dataclass(frozen=True)
class Aliases:
    """The version with each alias, or None.

    A version that becomes champion loses `challenger`. Only the stage `register` sets it.
    """

    champion: str | None = None
    previous: str | None = None
    challenger: str | None = None


@dataclass(frozen=True)
class AliasMove:
    """The aliases before and after a move, and its event."""

    before: Aliases
    after: Aliases
    event: Event

    def as_tag(self) -> str:
        """Return the tag's value."""
        content = {"before": asdict(self.before), "after": asdict(self.after), "event": self.event.as_tag()}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_tag(cls, value: str) -> AliasMove:
        """Parse a tag's value."""
        content = json.loads(value)
        return cls(Aliases(**content["before"]), Aliases(**content["after"]), Event.from_tag(content["event"]))


def read_aliases(client: MlflowClient, name: str) -> Aliases:
    """Return the current aliases."""
    aliases = client.get_registered_model(name).aliases
    return Aliases(*(str(aliases[alias]) if alias in aliases else None for alias in (CHAMPION, PREVIOUS, CHALLENGER)))


def move_aliases(client: MlflowClient, name: str, move: AliasMove, lock: HeldLock) -> None:
    """Move the aliases. The champion moves in one step, by which `recover` decides.

    If the server denies a step to this user, the moves are undone, the event is recorded as `forbidden`, and
    the error is raised again.
    """
    from mlflow.exceptions import MlflowException

    lock.check()
    try:
        # A server may allow this user to set aliases but not to delete them: fail before the first move.
        client.delete_registered_model_alias(name, _UNUSED_ALIAS)
        client.set_registered_model_tag(name, PENDING_MOVE, move.as_tag())
        _finish(client, name, move, lock)
    except MlflowException as error:
        if is_forbidden(error) and read_aliases(client, name).champion != move.after.champion:
            words = "the tracking server does not allow this user to move aliases"
            _undo(client, name, move, replace(move.event, outcome="forbidden", words=words), lock)
        raise


def recover(client: MlflowClient, name: str) -> str | None:
    """Complete or undo the move of a killed command; return a description, or None without one.

    Raises:
        UserError: Another process holds the lock.
    """
    if PENDING_MOVE not in client.get_registered_model(name).tags:
        return None
    with promotion_lock(client, name, client.tracking_uri) as lock:
        return recover_locked(client, name, lock)


def recover_locked(client: MlflowClient, name: str, lock: HeldLock) -> str | None:
    """Do the same as `recover` while holding the lock."""
    tag = client.get_registered_model(name).tags.get(PENDING_MOVE)
    if tag is None:
        return None
    move = AliasMove.from_tag(tag)
    aliases = read_aliases(client, name)
    event = move.event
    description = (
        f"the {event.action} of version {event.version}, started {event.time} by {event.user} and interrupted,"
    )
    if aliases.champion == move.after.champion:
        _finish(client, name, move, lock)
        return f"{description} was completed"
    undone = replace(event, outcome="undone", words="interrupted before the champion moved")
    _undo(client, name, move, undone, lock)
    return f"{description} was undone"


def record(client: MlflowClient, name: str, event: Event, lock: HeldLock) -> None:
    """Write an event to the stored decision, to the tags of its version and to the history; repeatable."""
    from mlflow.exceptions import MlflowException

    record_outcome(client, event)
    if event.action == "promotion" and event.verdict is not None:
        values = {"verdict": event.verdict, "outcome": event.outcome, "decided": event.time}
        for key, value in (values | {"decision": event.decision or ""}).items():
            lock.check()
            try:
                client.set_model_version_tag(name, event.version, f"{PREFIX}{key}", value)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the version was deleted meanwhile
                    raise
    lock.check()
    record_event(client, name, event)


def _undo(client: MlflowClient, name: str, move: AliasMove, event: Event, lock: HeldLock) -> None:
    """Restore `previous` and record why the champion did not move."""
    _set(client, name, PREVIOUS, read_aliases(client, name).previous, move.before.previous, lock)
    record(client, name, event, lock)
    lock.check()
    client.delete_registered_model_tag(name, PENDING_MOVE)


def _finish(client: MlflowClient, name: str, move: AliasMove, lock: HeldLock) -> None:
    """Do the rest of a move; steps done before are skipped."""
    aliases = read_aliases(client, name)
    _set(client, name, PREVIOUS, aliases.previous, move.after.previous, lock)
    _set(client, name, CHAMPION, aliases.champion, move.after.champion, lock)
    if aliases.challenger == move.after.champion:
        _set(client, name, CHALLENGER, aliases.challenger, None, lock)
    record(client, name, move.event, lock)
    lock.check()
    client.delete_registered_model_tag(name, PENDING_MOVE)


def _set(client: MlflowClient, name: str, alias: str, old: str | None, new: str | None, lock: HeldLock) -> None:
    if old == new:
        return
    lock.check()
    from mlflow.exceptions import MlflowException

    if new is not None:
        try:
            client.set_registered_model_alias(name, alias, new)
        except MlflowException as error:
            if alias == CHAMPION or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            new = None  # that version was deleted meanwhile
    if new is None:
        client.delete_registered_model_alias(name, alias)
