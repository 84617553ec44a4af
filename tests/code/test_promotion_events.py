"""What a history says about champions and anchors, also an old one, and one with deleted versions."""

from __future__ import annotations

import json
from dataclasses import asdict

from textmill.registry.promotion.events import Event, anchors, earlier_champions, last_champion, read_events


def move(number: int, action: str, champion: str | None, version: str, anchor: str | None = None, **more: str) -> Event:
    values = {"action": action, "version": version, "champion": champion, "outcome": "moved", "anchor": anchor}
    return Event(id=f"{number:03d}", time="", user="ann", **(values | more))  # type: ignore[arg-type]


HISTORY = [
    move(1, "promotion", None, "1", "1"),
    move(2, "promotion", "1", "2", "1"),
    move(3, "promotion", "2", "3", "1"),
    move(4, "promotion", "3", "4", "4"),
    move(5, "promotion", "4", "9", "4", outcome="refused"),
    move(6, "promotion", "4", "5", "4"),
]


def test_earlier_champions_follow_the_promotions() -> None:
    assert earlier_champions(HISTORY, "5") == ["4", "3", "2", "1"]
    assert earlier_champions(HISTORY, "2") == ["1"]
    assert earlier_champions(HISTORY, "9") == []
    assert last_champion(HISTORY) == "5"


def test_earlier_champions_end_where_a_version_returns() -> None:
    again = [
        *HISTORY[:3],
        move(7, "rollback", "3", "1"),
        move(8, "promotion", "1", "3", "1"),
        move(9, "promotion", "3", "1"),
    ]
    assert earlier_champions(again, "1") == ["3", "1"]


def test_anchor_is_named_by_the_promotion_of_the_champion() -> None:
    assert anchors(HISTORY, "3") == ["1", "2", "3"]
    assert anchors(HISTORY, "2") == ["1", "2"]
    assert anchors(HISTORY, "5") == ["4", "5"]


def test_rollback_restores_the_anchor_of_the_earlier_champion() -> None:
    assert anchors([*HISTORY, move(7, "rollback", "5", "3")], "3") == ["1", "2", "3"]


def test_champion_of_an_old_history_is_its_own_anchor() -> None:
    """Tags written before there was an anchor have no such field."""
    old = {key: value for key, value in asdict(HISTORY[1]).items() if key not in ("anchor", "look", "evaluation_set")}
    (event,) = read_events({"textmill.event.002": json.dumps(old), "textmill.claim.x": "{}"})
    assert event.anchor is None
    assert anchors([event], "2") == ["2"]
    assert anchors([], "7") == ["7"]
