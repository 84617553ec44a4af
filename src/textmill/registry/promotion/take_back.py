"""Record that a server took a challenger back, and refuse to try that version again."""

from __future__ import annotations

from typing import Literal

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.registry.promotion.events import Event, event_stamp, read_events, record_event
from textmill.registry.runs.store import open_client, short_timeout
from textmill.registry.versions import versions


class TakeBacks:
    """The take-backs of one registered model by `textmill serve`."""

    def __init__(self, name: str, kind: Literal["shadow", "canary"], layout: Layout) -> None:
        self._name, self._kind, self._layout = name, kind, layout

    def record(self, version: str, champion: str, reason: str) -> None:
        """Write a take-back to the history; no alias moves.

        Raises:
            UserError: The store does not answer.
        """
        event = Event(
            **event_stamp(), action=self._kind, version=version, champion=champion, outcome="taken back", words=reason
        )
        with open_client(self._runtime(), self._layout) as client, short_timeout():
            record_event(client, self._name, event)

    def refuse(self, version: str) -> None:
        """Raise UserError if the version was taken back before."""
        with open_client(self._runtime(), self._layout) as client:
            events = read_events(client.get_registered_model(self._name).tags)
        taken = [event for event in events if event.version == version and event.outcome == "taken back"]
        if taken:
            words = f"version {version} was taken back on {taken[-1].time[:10]}: {taken[-1].words}"
            raise UserError(words, where=f"--{self._kind}", fix="Register another version; see `textmill history`")

    def _runtime(self) -> RuntimeConfig:
        return RuntimeConfig(tracking_uri=versions.configured_uri(self._layout))
