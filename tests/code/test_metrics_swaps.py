"""The joint test of parts by swapped answers: exact where it can be counted, the same for means and other metrics."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from textmill.errors import UserError
from textmill.metrics.base import Metric, mean_of
from textmill.metrics.swaps import Pair, joint_tests

MEAN = Metric("mean", mean_of("x"))
ERROR = Metric("error", mean_of("x"), higher_is_better=False)
SQUARE = Metric("square", lambda columns, index: columns["x"][index].mean(axis=1) ** 2)
EVERY = np.arange(12)


def pair(first: np.ndarray, second: np.ndarray) -> Pair:
    return Pair({"x": np.asarray(first, float)}, {"x": np.asarray(second, float)})


def test_p_value_equals_that_of_all_swaps() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.0, 1, 12), rng.normal(0.6, 1, 12)
    every = [np.mean(np.array(signs) * (first - second)) for signs in product((-1, 1), repeat=12)]
    exact = np.mean(np.array(every) <= np.mean(first - second) + 1e-12)
    ((test,),) = joint_tests([pair(first, second)], [EVERY], MEAN, 0.0, 0.05, 20_000, 0)
    assert 0.01 < exact < 0.3
    assert test.p == pytest.approx(exact, abs=0.01)
    ((other,),) = joint_tests([pair(second, first)], [EVERY], ERROR, 0.0, 0.05, 20_000, 0)
    assert (other.gain, other.p) == (pytest.approx(test.gain), pytest.approx(test.p, abs=0.01))


def test_means_and_other_metrics_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way for means gives the numbers of the general one."""
    rng = np.random.default_rng(1)
    table = pair(rng.random(300) < 0.7, rng.random(300) < 0.8)
    parts = [np.arange(0, 100), np.arange(50, 300), np.arange(0, 300, 7)]
    short = joint_tests([table], parts, MEAN, 0.02, 0.05, 500, 0)[0]
    monkeypatch.setattr(Pair, "linear_effects", lambda *_: None)
    general = joint_tests([table], parts, MEAN, 0.02, 0.05, 500, 0)[0]
    for one, other in zip(short, general, strict=True):
        assert np.allclose(list(vars(one).values()), list(vars(other).values()))


def test_metric_that_is_not_a_mean_is_recognised() -> None:
    table = pair(np.linspace(0, 1, 12), np.linspace(1, 0, 12) ** 2)
    assert table.linear_effects(SQUARE, 0) is None
    assert table.linear_effects(MEAN, 0) is not None
    ((test,),) = joint_tests([table], [EVERY], SQUARE, 0.0, 0.05, 300, 0)
    assert test.gain == pytest.approx(table.first["x"].mean() ** 2 - table.second["x"].mean() ** 2)


def test_small_part_does_not_hide_a_loss_elsewhere() -> None:
    """Five rows that all lose or all win by chance must not raise the limit of the others."""
    rng = np.random.default_rng(2)
    first = np.ones(700)
    second = np.ones(700)
    first[200:300][rng.random(100) < 0.3] = 0
    parts = [np.arange(start, start + 5) for start in range(300, 700, 5)]
    second[300:][rng.random(400) < 0.5] = 0
    tests = joint_tests([pair(first, second)], [np.arange(200, 300), *parts], MEAN, 0.02, 0.05, 1000, 0)[0]
    assert tests[0].p < 0.01
    assert min(test.p for test in tests[1:]) > 0.5


def test_metric_that_is_not_finite_is_refused() -> None:
    broken = Metric("broken", lambda columns, index: 1 / columns["x"][index].sum(axis=1))
    says = "broken is not a finite number in 1 of 2"
    table = pair(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]))
    with np.errstate(all="ignore"), pytest.raises(UserError, match=says):
        joint_tests([table], [np.arange(2), np.arange(1, 4)], broken, 0.0, 0.05, 50, 0)


def test_rows_that_seldom_gain_much_do_not_look_like_a_loss() -> None:
    """Of 60 pairs of equal mean, half would be refused if each part's own rows told how much a row varies."""
    rng = np.random.default_rng(3)
    parts = np.split(np.arange(500), 10)
    refused = 0
    for seed in range(60):
        gains = rng.lognormal(0, 1, 500) - np.exp(0.5)
        tests = joint_tests([pair(gains, np.zeros(500))], parts, MEAN, 0.02, 0.05, 300, seed)[0]
        refused += min(test.p for test in tests) < 0.05
    assert refused <= 7
    lost = gains.copy()
    lost[parts[4]] -= 3
    assert joint_tests([pair(lost, np.zeros(500))], parts, MEAN, 0.02, 0.05, 300, 0)[0][4].p < 0.05
