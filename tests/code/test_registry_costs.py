"""What an answer takes is measured so that a busy machine does not decide a promotion."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from textmill.registry.promotion import costs
from textmill.registry.promotion.costs import latencies

ROWS: list[dict[str, Any]] = [{"text": str(number)} for number in range(200)]


class Clock:
    """Time that passes only while a model answers."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Model:
    """Takes as long as it is told for its n-th answer."""

    def __init__(self, clock: Clock, seconds: Callable[[int], float]) -> None:
        self.clock, self.seconds, self.asked = clock, seconds, 0

    def predict(self, values: list[Any]) -> list[dict[str, Any]]:
        self.clock.now += self.seconds(self.asked)
        self.asked += 1
        return [{} for _ in values]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(costs, "time", made)
    return made


def test_equal_models_come_out_equal_however_often_each_is_disturbed(clock: Clock) -> None:
    chance = random.Random(0)
    for _ in range(50):
        models = [Model(clock, lambda _: 0.006 if chance.random() < 0.5 else 0.0025) for _ in range(2)]
        assert latencies([model.predict for model in models], ROWS, repeats=3) == pytest.approx([2.5, 2.5])


def test_a_slower_model_stays_slower(clock: Clock) -> None:
    chance = random.Random(0)
    slow = Model(clock, lambda _: 0.009 if chance.random() < 0.4 else 0.005)
    fast = Model(clock, lambda _: 0.006 if chance.random() < 0.4 else 0.0025)
    assert latencies([slow.predict, fast.predict], ROWS, repeats=3) == pytest.approx([5.0, 2.5])


def test_a_quiet_machine_is_asked_no_more_than_it_must_and_a_busy_one_not_for_ever(clock: Clock) -> None:
    quiet = Model(clock, lambda _: 0.0025)
    latencies([quiet.predict], ROWS, repeats=3)
    assert quiet.asked == 3 * len(ROWS) + 5
    calmer = Model(clock, lambda asked: 0.5 ** (asked / len(ROWS)))  # falls for ever
    latencies([calmer.predict], ROWS, repeats=3)
    assert calmer.asked == 15 * len(ROWS) + 5
