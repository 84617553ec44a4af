"""Intervals cover what they should, repeat by seed, pair by id, and fail closed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from textmill.errors import UserError
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, Interval, intervals, paired_differences, paired_test

MEAN = Metric("mean", lambda columns, index: columns["score"][index].mean(axis=1))


def table(scores: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"row-{i}" for i in range(len(scores))], "score": scores, "label": "x"})


def test_interval_of_a_mean_is_that_of_theory():
    scores = np.random.default_rng(0).normal(5, 2, 2000)
    found = intervals(table(scores), [MEAN], Bootstrap(resamples=4000))["mean"]
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=0.006)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.006)


def test_intervals_cover_the_truth_as_often_as_they_say():
    chooser = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        found = intervals(table(chooser.normal(size=80)), [MEAN], Bootstrap(resamples=300, confidence=0.8, seed=trial))
        covered += found["mean"].low <= 0 <= found["mean"].high
    assert 0.72 <= covered / 200 <= 0.88


def test_an_inflated_figure_stays_in_its_interval_and_never_below_zero():
    """The length of a mean vector: resampling adds noise to it, which makes it longer."""
    names = [f"score_{i}" for i in range(20)]
    noise = np.random.default_rng(5).normal(size=(100, 20))
    drawn = pd.DataFrame(noise, columns=names).assign(id=[f"row-{i}" for i in range(100)])

    def length(columns, index):
        return np.linalg.norm([columns[name][index].mean(axis=1) for name in names], axis=0)

    plain, moved = Metric("length", length), Metric("length", length, inflated=True)
    assert intervals(drawn, [plain], Bootstrap())["length"].low > np.linalg.norm(noise.mean(axis=0))
    found = intervals(drawn, [moved], Bootstrap())["length"]
    assert 0 < found.low < found.value < found.high
    still = drawn.assign(**dict.fromkeys(names, 0.0)).assign(score_0=noise[:, 0] - noise[:, 0].mean())
    assert intervals(still, [moved], Bootstrap())["length"].low == 0
    one = Metric("one", lambda columns, index: 5 + columns["score_0"][index].mean(axis=1))
    raw, other = intervals(drawn, [plain, one], Bootstrap()).values()
    together = intervals(drawn, [one, moved], Bootstrap())
    assert together["length"].high == found.high
    assert together["one"] == other, "only an inflated metric is moved"
    assert raw.high - found.high == pytest.approx(raw.low - found.low), "as a whole"
    itself = paired_differences(drawn, drawn, [moved], Bootstrap())["length"]
    assert (itself.low, itself.value, itself.high) == (0, 0, 0)


def test_a_seed_repeats_and_another_differs():
    scores = table(np.random.default_rng(2).normal(size=100))
    first, again, other = (intervals(scores, [MEAN], Bootstrap(seed=seed))["mean"] for seed in (1, 1, 2))
    assert first == again
    assert first.low != other.low


def test_pairing_finds_a_small_difference_between_rows_of_unlike_hardness():
    chooser = np.random.default_rng(3)
    hard = chooser.normal(0, 10, 400)
    ours, theirs = table(hard + 0.3 + chooser.normal(0, 0.5, 400)), table(hard)
    lead = paired_differences(ours, theirs.sample(frac=1, random_state=0), [MEAN], Bootstrap())["mean"]
    assert lead.low > 0, "the lead is clear when the rows are paired"
    assert lead.value == pytest.approx(0.3, abs=0.1)
    back = paired_differences(theirs, ours, [MEAN], Bootstrap())["mean"]
    assert back.value == pytest.approx(-lead.value)
    assert back.high < 0
    apart = [intervals(side, [MEAN], Bootstrap())["mean"] for side in (ours, theirs)]
    assert apart[0].low < apart[1].high, "and hidden when they are not"


def test_all_figures_share_the_draws():
    double = Metric("double", lambda columns, index: 2 * columns["score"][index].mean(axis=1))
    found = intervals(table(np.random.default_rng(4).normal(size=50)), [MEAN, double], Bootstrap())
    assert found["double"].low == pytest.approx(2 * found["mean"].low)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_fails(value):
    good, broken = table(np.ones(10)), table(np.ones(10))
    broken.loc[3, "score"] = value
    says = r"^1 of 10 predictions have a score that is not a finite number\. The model has probably diverged; train"
    with pytest.raises(UserError, match=says):
        intervals(broken, [MEAN], Bootstrap())
    for ours, theirs in ((good, broken), (broken, good)):
        with pytest.raises(UserError, match="not a finite number"):
            paired_differences(ours, theirs, [MEAN], Bootstrap())


def test_a_figure_that_is_not_finite_fails():
    rare = Metric("rare", lambda columns, index: np.where((index == 0).any(axis=1), 1.0, np.nan))
    with pytest.raises(UserError, match=r"^rare is nan, not a finite number\. Check the predictions\.$"):
        intervals(table(np.ones(10)), [rare], Bootstrap())


def test_rows_that_do_not_match_fail():
    ours = table(np.ones(10))
    fix = r"Predict the same split with both models\."
    with pytest.raises(UserError, match=rf"models predicted different rows \(10 and 9, 9 in common\)\. {fix}$"):
        paired_differences(ours, ours.head(9), [MEAN], Bootstrap())
    with pytest.raises(UserError, match=rf"different rows \(10 and 10, 0 in common\)\. {fix}$"):
        paired_differences(ours, ours.assign(id=[f"other-{i}" for i in range(10)]), [MEAN], Bootstrap())
    same = ours.assign(id="same")
    for pair, side in (((ours, same), "second"), ((same, ours), "first")):
        with pytest.raises(UserError, match=rf"^the {side} predictions repeat an id\. Predict the split again\.$"):
            paired_differences(*pair, [MEAN], Bootstrap())
    relabelled = ours.assign(label=["x"] * 9 + ["y"])
    with pytest.raises(UserError, match=rf"^the two models' rows differ in label \(.+\)\. {fix}$"):
        paired_differences(ours, relabelled, [MEAN], Bootstrap(), ["label"])


@pytest.mark.parametrize("empty", [None, float("nan")])
def test_empty_cells_match_each_other_and_nothing_else(empty):
    unlabelled = table(np.ones(10)).assign(label=[empty] + ["x"] * 9)
    assert paired_differences(unlabelled, unlabelled.iloc[::-1], [MEAN], Bootstrap(), ["label"])
    with pytest.raises(UserError, match="the two models' rows differ in label"):
        paired_differences(unlabelled, unlabelled.assign(label="x"), [MEAN], Bootstrap(), ["label"])


def test_fewer_than_two_rows_fail():
    with pytest.raises(UserError, match="1 row"):
        intervals(table(np.ones(1)), [MEAN], Bootstrap())


def test_an_interval_is_written_and_turned_round():
    interval = Interval(0.12345678, -0.22222222, 0.33333333)
    assert interval.as_dict() == {"value": 0.123457, "low": -0.222222, "high": 0.333333}
    assert interval.as_gain(higher_is_better=True) == interval
    assert interval.as_gain(higher_is_better=False) == Interval(-0.12345678, -0.33333333, 0.22222222)
    assert str(Interval(0.0, 0.0, 0.0).as_gain(higher_is_better=False).value) == "0.0", "not -0.0"


@pytest.mark.parametrize(("higher_is_better", "sign"), [(True, 1), (False, -1)])
def test_a_paired_test_gives_the_gain_of_the_first(higher_is_better, sign):
    metric = Metric("mean", MEAN.score, higher_is_better=higher_is_better)
    ours, theirs = (np.random.default_rng(seed).normal(size=60) for seed in (7, 8))
    shuffled = table(theirs).sample(frac=1, random_state=1)
    found = paired_test(table(ours), shuffled, metric, Bootstrap(resamples=200, seed=3)).gain
    assert found.value == pytest.approx(sign * (ours.mean() - theirs.mean()))
    plain = paired_differences(table(ours), shuffled, [MEAN], Bootstrap(resamples=200, seed=3))["mean"]
    assert (found.low, found.high) == pytest.approx(
        (plain.low, plain.high) if sign == 1 else (-plain.high, -plain.low), abs=0.02
    )
