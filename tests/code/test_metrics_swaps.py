"""The joint test of parts by swapped answers: exact where it can be counted, the same for means and other metrics."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from textmill.errors import UserError
from textmill.metrics import swaps
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


@pytest.mark.parametrize("rows", [7, 400])
@pytest.mark.parametrize("cells", [1, 4000, 4_000_000])
def test_each_draw_swaps_each_row_with_probability_one_half(
    rows: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swaps, "_CELLS_AT_ONCE", cells)
    batches = list(swaps._swaps(rows, 999, 0))
    assert all(batch.size <= max(cells, rows) for batch in batches)
    drawn = np.concatenate(batches)
    assert drawn.shape == (1000, rows)
    assert not drawn[0].any()
    assert (drawn[1:].any(axis=1) | (rows == 7)).all()
    assert np.abs(drawn.mean(axis=0) - 0.5).max() < 0.08
    assert np.abs(drawn.mean() - 0.5) < 0.02


def test_rows_of_infinite_or_unknown_score_count_as_zero() -> None:
    table = pair([0.0, 1.0], [2.0, 1.0])
    with np.errstate(all="raise"):
        inverse = table.row_scores(Metric("inverse", lambda columns, index: 1 / columns["x"][index].mean(axis=1)))
        log = table.row_scores(Metric("log", lambda columns, index: np.log(columns["x"][index].mean(axis=1))))
    assert [list(side) for side in inverse] == [[0.0, 1.0], [0.5, 1.0]]
    assert [list(side) for side in log] == [[0.0, 0.0], [np.log(2), 0.0]]


def test_typical_change_is_the_size_that_differing_rows_have() -> None:
    assert pair([1, 0, 1, 0], [0, 1, 1, 0]).typical_change(MEAN) == 1
    assert pair([0.5, 0.0, 1.0], [0.0, 0.25, 1.0]).typical_change(MEAN) == pytest.approx((0.25 + 0.0625) / 0.75)


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
    says = r"^broken is not a finite number in 1 of 2 slices. Choose gate\.difference\.metric, gate\.slices\.columns or"
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


def test_rows_vary_at_least_as_those_of_all_parts() -> None:
    """By hand: variances times sizes of 8, 1 and 0 (unknown); their mean, weighted by sizes, is 20 / 6.25."""
    null = np.array([[2.0, 0.5, 0.0], [-2.0, -0.5, 0.0]])
    found = swaps._wider(null, np.array([2.0, 4.0, 0.25]))
    assert found == pytest.approx([1.0, np.sqrt(20 / 6.25), 1.0])


def test_rows_of_right_or_wrong_change_by_one_size() -> None:
    assert not pair([1, 0, 1, 0], [0, 1, 1, 0]).changes_vary(MEAN)
    assert not pair([1, 0], [1, 0]).changes_vary(MEAN)
    assert pair([0.9, 0.1, 0.5], [0.2, 0.1, 0.4]).changes_vary(MEAN)
    assert not pair([0.3, 0.1, 0.5], [0.2, 0.1, 0.4]).changes_vary(MEAN)


@pytest.mark.parametrize("seed", range(8))
def test_joint_test_is_the_step_down_of_its_definition(seed: int) -> None:
    """Westfall & Young 1993, counted draw by draw; the smallest loss by bisection."""
    rng = np.random.default_rng(seed)
    draws, margin, significance = 39, 0.02 * (seed % 2), 0.1
    null = rng.normal(size=(draws, 4)).round(1) * [0.1, 0.2, 0.05, 0.0]
    gain = np.array([-0.15, 0.1, -0.09, -0.05 * (seed % 3)])
    unit, wider = np.array([0.01, 0.02, 0.2, 0.0]), np.array([1.0, 1.5, 1.0, 2.0])
    found = swaps._jointly(gain, null, unit, wider, margin, significance)

    floor = [max(np.mean(null[:, part] ** 2), margin * unit[part]) ** 0.5 for part in range(4)]
    scaled = [null[:, part] / (floor[part] or 1.0) for part in range(4)]
    scale = [floor[part] * wider[part] for part in range(4)]
    score = [(-gain[part] - margin) / (scale[part] or 1.0) for part in range(4)]
    limit = max(0.0, sorted(max(draw) for draw in zip(*scaled, strict=True))[math.ceil((draws - 1) * 0.9)])
    p = 0.0
    for rank, part in enumerate(sorted(range(4), key=lambda part: -score[part])):
        left = sorted(range(4), key=lambda part: -score[part])[rank:]
        as_large = sum(max(scaled[other][draw] for other in left) >= score[part] - 1e-9 for draw in range(draws))
        p = max(p, (1 + as_large) / (1 + draws))
        test = found[part]
        assert test.gain == gain[part]
        assert test.p == pytest.approx(p)
        assert (test.low, test.high) == pytest.approx(
            (gain[part] - limit * scale[part], gain[part] + limit * scale[part])
        )
        low, high = 0.0, 1e3
        for _ in range(200):
            middle = (low + high) / 2
            enough = middle >= margin + limit * max(scale[part], (middle * unit[part]) ** 0.5)
            low, high = (low, middle) if enough else (middle, high)
        assert test.smallest == pytest.approx(high, abs=1e-9)


def test_draw_as_large_as_the_loss_counts() -> None:
    """Three of four draws, this one among them, lose as much: a tie that rounding must not break."""
    null = np.array([[0.3], [0.1 + 0.2], [-0.3]])
    (test,) = swaps._jointly(np.array([-0.3]), null, np.array([0.1]), np.ones(1), 0.0, 0.05)
    assert test.p == 3 / 4


def test_limit_of_losses_alone_is_never_below_zero() -> None:
    (test,) = swaps._jointly(np.array([-0.1]), -np.ones((9, 1)), np.array([0.0]), np.ones(1), 0.0, 0.05)
    assert (test.low, test.high, test.p) == (-0.1, -0.1, 0.1)
