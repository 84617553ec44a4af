"""The sequential test of shadow and canary: false alarms, power, and where the power ends."""

from __future__ import annotations

import numpy as np
import pytest

from textmill.metrics.sequential import BettingTest

QUALITY = 0.008


def caught(loss: float, disagreement: float, runs: int, rows: int = 1000, seed: int = 1) -> int:
    """Runs with an alarm: pairs of right and wrong answers that differ on a share of the rows."""
    worse, better = (disagreement + loss) / 2, (disagreement - loss) / 2
    draws = np.random.default_rng(seed).choice([1, -1, 0], (runs, rows), p=[worse, better, 1 - disagreement])
    alarms = 0
    for run in draws:
        test = BettingTest(QUALITY)
        alarms += any(test.add(float(difference)) for difference in run[run != 0])
    return alarms


@pytest.mark.parametrize("disagreement", [0.02, 0.1, 0.4])
def test_equal_models_give_at_most_one_false_alarm_in_a_hundred_runs(disagreement: float) -> None:
    assert caught(0.0, disagreement, 1000) <= 10


def test_a_loss_of_two_points_is_caught_within_a_thousand_labels_where_disagreements_are_rare() -> None:
    assert caught(0.02, 0.02, 100) >= 99


def test_a_loss_of_two_points_among_many_disagreements_needs_more_labels() -> None:
    assert caught(0.02, 0.1, 100) <= 50
    assert caught(0.02, 0.1, 100, rows=10_000) >= 95


def test_a_better_model_is_never_called_worse() -> None:
    assert caught(-0.02, 0.04, 1000) <= 2


def test_an_alarm_stays_and_evidence_starts_at_one() -> None:
    test = BettingTest(0.01)
    assert (test.evidence, test.mean, test.alarm) == (1.0, 0.0, False)
    while not test.add(1):
        pass
    assert test.count <= 9
    assert [test.add(-1) for _ in range(50)][-1]
