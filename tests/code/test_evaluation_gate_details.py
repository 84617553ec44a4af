"""Every check of the gate by name, status, text and figures, and its limits to the row and the digit."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.gate_inputs import DIGEST, ERROR, RIGHT, answers, gate, material, predictions

from textmill.config.sections.gate import GateConfig
from textmill.errors import UserError
from textmill.evaluation.gate import Costs, GateInputs, MeasuredVersion, Verdict, _percent, judge
from textmill.evaluation.slices import LENGTH, Slice, cut_slices, pool_small
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, checked_pair, paired_gain

SQUARE = Metric("square", lambda columns, index: columns["right"][index].mean(axis=1) ** 2)
BIASED = Metric("biased", lambda columns, index: columns["right"][index].std(axis=1), inflated=True)


def told(verdict: Verdict) -> list[tuple[str, str, str, list[str]]]:
    """Name, status, text with `#` for numbers, and the keys of the figures of each check."""
    return [
        (each.name, each.status, re.sub(r"[+-]?\d+(\.\d+)?(e-\d+)?", "#", each.words), list(each.figures))
        for each in verdict.checks
    ]


def everything() -> GateInputs:
    """A challenger that loses one source, beside a champion and an anchor, at the second look."""
    right = np.ones(400)
    right[100:120] = 0
    anchor = MeasuredVersion("version 0", DIGEST, predictions(right), Costs(9.0, 90.0, 19.0))
    return material(answers(range(60)), answers(range(100, 120)), anchor=anchor, look=2)


INTERVAL = ["metric", "claim", "margin", "value", "low", "high", "opponent", "look", "alpha"]
COSTS = ["value", "bound", "champion", "anchor"]
SLICE = ["column", "slice", "rows", "metric", "value", "low", "high", "smallest_loss", "p", "result"]
GAIN = "in share_right: gain # (#% interval # to #, look # at this evaluation set)"


def test_all_checks_of_a_bad_challenger() -> None:
    config = gate(
        floors={"share_right": 0.99, "recall": 0.5, "error": 0.5},
        slices={"required": {"source": ["a", "c"]}, "min_rows": 100},
        budgets={"latency": {"ratio": 1.0, "limit": 5.0}, "memory": {"ratio": 1.2}, "size": {"limit": 30.0}},
    )
    assert told(judge(everything(), config)) == [
        ("digest", "pass", "version # was built with this evaluation set (aaaaaaaaaaaa)", []),
        ("digest", "pass", "version # was built with this evaluation set (aaaaaaaaaaaa)", []),
        ("overlap", "pass", "# of # evaluation rows are also in the training split, #% allowed", ["rows", "share"]),
        ("floor", "fail", "share_right is #, at least # is required", ["metric", "floor", "value", "low", "high"]),
        ("floor", "fail", "recall has a floor but is not a metric of this task", []),
        ("floor", "pass", "error is #, at most # is required", ["metric", "floor", "value", "low", "high"]),
        ("difference", "fail", f"version # is worse by # or more {GAIN}", INTERVAL),
        ("anchor", "fail", f"version # is worse by # or more than the anchor, version #, {GAIN}", INTERVAL),
        ("slice", "fail", "the required slice source c is empty", ["column", "slice", "rows"]),
        *judge_slices(),
        (
            "latency",
            "fail",
            "latency: # ms for one row (#th percentile), the limit is #",
            COSTS,
        ),
        (
            "latency",
            "pass",
            "latency: # ms for one row (#th percentile), # times the champion's # is allowed",
            COSTS,
        ),
        (
            "latency",
            "fail",
            "latency: # ms for one row (#th percentile), # times the anchor's # is allowed",
            COSTS,
        ),
        (
            "memory",
            "pass",
            "memory: # MB of memory, # times the champion's # is allowed",
            COSTS,
        ),
        (
            "memory",
            "pass",
            "memory: # MB of memory, # times the anchor's # is allowed",
            COSTS,
        ),
        ("size", "pass", "size: # MB on disk, the limit is #", COSTS),
    ]


def judge_slices() -> list[tuple[str, str, str, list[str]]]:
    length, gain = "slice length # to # tokens (# rows)", "in share_right: gain #"
    lost = f"loses more than # {gain}, adjusted p #"
    to_anchor = f"loses more than # to the anchor, version #, {gain}, adjusted p #"
    unknown = f"cannot be decided {gain}; its rows show only a loss of # or more"
    return [
        ("slice", "fail", f"{length} {lost}", SLICE),
        ("slice", "fail", f"{length} {lost}", SLICE),
        ("slice", "undecided", f"{length} {unknown}", SLICE),
        ("slice", "undecided", f"{length} {unknown}", SLICE),
        ("slice", "fail", f"slice source a (# rows) {lost}", SLICE),
        ("slice", "pass", f"slice source b (# rows) loses less than # {gain}, at least #", SLICE),
        ("slice", "fail", f"{length} {to_anchor}", SLICE),
        ("slice", "fail", f"{length} {to_anchor}", SLICE),
        ("slice", "fail", f"slice source a (# rows) {to_anchor}", SLICE),
    ]


def test_figures_of_a_check_are_those_of_its_text() -> None:
    verdict = judge(everything(), gate(slices={"min_rows": 100}))
    difference = next(check for check in verdict.checks if check.name == "difference")
    assert difference.figures["opponent"] == "version 1"
    assert difference.figures["look"] == 2
    assert difference.figures["claim"] == "non_inferiority"
    assert difference.figures["alpha"] == pytest.approx(0.05 / 6)
    assert f"gain {difference.figures['value']:+.4f}" in difference.words
    lost = next(check for check in verdict.checks if check.name == "slice" and "source a" in check.words)
    assert (lost.figures["column"], lost.figures["slice"], lost.figures["rows"]) == ("source", "a", 100)
    assert lost.figures["value"] == -0.6
    assert lost.figures["low"] < -0.6 < lost.figures["high"] < 0
    assert lost.figures["result"] == "lost"
    assert all(round(lost.figures[name], 6) == lost.figures[name] for name in ("low", "high", "smallest_loss", "p"))


def test_superiority_is_claimed_over_the_champion_alone() -> None:
    config = gate(difference={"claim": "superiority", "margin": 0.01})
    champion, anchor = answers(range(200, 300)), answers(range(8))
    other = MeasuredVersion("version 0", DIGEST, anchor, Costs(10.0, 100.0, 20.0))
    verdict = judge(material(answers(range(8)), champion, anchor=other), config)
    names = {check.name: check for check in verdict.checks}
    assert names["difference"].words.startswith(
        "version 2 is better by more than 0.01 in share_right: gain +0.2300 (95% i"
    )
    assert "look" not in names["difference"].words
    assert names["anchor"].words.startswith("version 2 is not worse by 0.01 or more than the anchor, version 0, in")
    worse = judge(material(champion, anchor), config).checks
    assert any(check.words.startswith("version 2 is not better by more than 0.01") for check in worse)
    equal = judge(material(champion, champion), config).checks
    assert any(check.words.startswith("version 2 is not better by more than 0.01") for check in equal)
    unknown = judge(material(answers(range(3), 40), answers(range(2, 6), 40)), config).checks
    assert any(check.words.startswith("version 2 may or may not be better by more than 0.01") for check in unknown)


def test_metric_that_is_not_a_mean_is_drawn_as_configured() -> None:
    config = gate(resamples=700, confidence=0.9, seed=3, difference={"metric": "square"}, slices={"min_rows": 400})
    ours, theirs = answers(range(9)), answers(range(20))
    checks = judge(material(ours, theirs, metrics=[RIGHT, SQUARE]), config).checks
    (found,) = [check.figures for check in checks if check.name == "difference"]
    pair = checked_pair(ours, theirs, ["label"])
    expected = paired_gain(pair, SQUARE, -config.difference.margin, Bootstrap(700, 0.9, 3), found["alpha"]).as_dict()
    assert expected["low"] < expected["value"] < expected["high"]
    assert {name: found[name] for name in expected} == expected


def test_looks_that_are_used_up() -> None:
    verdict = judge(material(answers(), answers(), look=21), gate(looks={"spending": "even", "planned": 20}))
    assert told(verdict)[4] == (
        "difference",
        "inconclusive",
        "the # looks planned for this evaluation set are used up; prepare a fresh split",
        ["look"],
    )


def test_anchor_of_another_set_is_named() -> None:
    other = MeasuredVersion("version 0", "b" * 64, answers(), Costs(1.0, 1.0, 1.0))
    checks = told(judge(material(answers(), answers(), anchor=other), gate()))
    text = "version # was the anchor, but on another evaluation set; the champion takes its place"
    assert ("anchor", "pass", text, []) in checks


@pytest.mark.parametrize(("floor", "passes"), [(0.95, True), (0.9501, False)])
def test_floor_is_reached_by_equality(floor: float, passes: bool) -> None:
    wrong = answers(range(20))
    config = gate(floors={"share_right": floor})
    assert (judge(material(wrong, None), config).status == "pass") == passes
    half = gate(floors={"error": 0.5 if passes else 0.4999})
    assert (judge(material(answers(range(200)), None), half).status == "pass") == passes


def test_without_floors_the_main_metric_is_told() -> None:
    checks = told(judge(material(answers(), None), gate()))
    assert ("floor", "pass", "gate.floors is empty; share_right is #", ["metric", "value", "low", "high"]) in checks
    named = [check for check in checks if check[0] == "floor"]
    assert len(named) == 1


@pytest.mark.parametrize(
    ("cost", "passes"), [(20.0, True), (20.1, False), (0.5, True), (0.0, False), (-1.0, False), (math.nan, False)]
)
def test_budget_is_kept_by_equality_and_never_by_nothing(cost: float, passes: bool) -> None:
    given = material(answers(), None)
    given = replace(given, challenger=replace(given.challenger, costs=Costs(cost, 1.0, 1.0)))
    assert (judge(given, gate(budgets={"latency": {"limit": 20.0}})).status == "pass") == passes


def test_infinite_costs_of_the_champion_allow_nothing() -> None:
    given = material(answers(), answers())
    assert given.champion is not None
    endless = replace(given, champion=replace(given.champion, costs=Costs(math.inf, 1.0, 1.0)))
    assert judge(endless, gate(budgets={"latency": {"ratio": 2.0}})).status == "fail"


def test_another_number_format_than_the_champions_is_told() -> None:
    given = material(answers(), answers())
    assert given.champion is not None
    costs = (Costs(1.0, 1.0, 90.0, "fp32"), Costs(1.0, 1.0, 58.0, "int8"))
    ours, theirs = (
        replace(one, costs=cost) for one, cost in zip((given.challenger, given.champion), costs, strict=True)
    )
    verdict = judge(replace(given, challenger=ours, champion=theirs), gate(budgets={"size": {"ratio": 1.25}}))
    [told] = [check.words for check in verdict.checks if check.name == "size"]
    assert "1.25 times the champion's 58.00 is allowed (fp32 serves here, int8 there)" in told


def test_targets_that_differ_are_refused_everywhere() -> None:
    theirs = answers().assign(label="y")
    checks = {check.name: check for check in judge(material(answers(), theirs), gate()).checks}
    for name in ("difference", "slices"):
        assert checks[name].status == "fail"
        assert checks[name].words.startswith(f"{name}: the two models' rows differ in label (400 of 400, first")


def test_metric_that_does_not_exist_is_refused_with_those_that_do() -> None:
    group = Metric("f1_of_positive", RIGHT.score)
    with pytest.raises(UserError) as refused:
        from textmill.evaluation.gate import _metric

        _metric(material(answers(), None, metrics=[RIGHT, ERROR, group]), "accuracy")
    assert str(refused.value).startswith(
        "gate.difference.metric: 'accuracy' is not a metric of this task. Choose among sh"
    )
    checks = judge(material(answers(), answers()), gate(difference={"metric": "accuracy"})).checks
    assert [check.name for check in checks if check.status == "fail"] == ["difference", "slices"]


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (lambda frame: frame.drop(columns="source"), "slices: the evaluation set has no column 'source'"),
        (lambda frame: frame.assign(source=None), "slices: column 'source' of the evaluation set is empty"),
        (lambda frame: frame.drop(columns="length"), "slices: the evaluation set has no rows with a length"),
    ],
)
def test_frame_that_cannot_be_cut_is_told(frame: Any, says: str) -> None:
    given = material(answers(), answers())
    (check,) = [
        each for each in judge(replace(given, frame=frame(given.frame)), gate()).checks if each.name == "slices"
    ]
    assert (check.status, check.words) == ("fail", says)


def test_untested_slices_are_counted() -> None:
    checks = judge(material(answers(), answers()), gate(slices={"min_rows": 250})).checks
    says = "5 slices of fewer than 250 rows (500 in all) were not tested"
    assert [(each.name, each.status) for each in checks if each.words == says] == [("slice", "undecided")]


def test_overlap_of_no_rows_and_of_too_many() -> None:
    given = material(answers(), None, overlap=8)
    assert judge(given, gate(max_overlap=0.02)).status == "pass"
    (check,) = [each for each in judge(given, gate(max_overlap=0.0199)).checks if each.name == "overlap"]
    assert check.words == "8 of 400 evaluation rows are also in the training split, 1.99% allowed"
    assert check.figures == {"rows": 8, "share": 0.02}


@pytest.mark.parametrize(
    ("alpha", "text"),
    [
        (0.025, "95%"),
        (0.005, "99%"),
        (0.0125, "97.5%"),
        (0.05 / 6, "98.3%"),
        (0.05 / 12, "99.17%"),
        (0.1, "80%"),
        (0.25, "50%"),
    ],
)
def test_confidence_has_two_digits_of_what_is_left(alpha: float, text: str) -> None:
    assert _percent(alpha) == text


# -- intervals of the gain ------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_gain_of_a_mean_is_students_interval(sign: int) -> None:
    metric = RIGHT if sign == 1 else ERROR
    rng = np.random.default_rng(3)
    first, second = predictions(rng.random(30) < 0.9), predictions(rng.random(30) < 0.6)
    pair = checked_pair(first, second)
    effects = (first["right"] - second["right"]).to_numpy()
    found = paired_gain(pair, metric, 0.0, Bootstrap(seed=1), 0.025)
    # Half of the rows that are missing for a difference of the gain count as differing, of 1 each.
    error = math.sqrt(effects.var() / 30 + max(0.0, effects.mean()) / 2 / 30)
    reach = error * stats.t.ppf(0.975, 29)
    assert (found.value, found.low, found.high) == pytest.approx(
        (effects.mean(), effects.mean() - reach, effects.mean() + reach)
    )
    near = paired_gain(pair, metric, 0.9, Bootstrap(seed=1), 0.025)
    assert near.high - near.value == pytest.approx(math.sqrt(0.9 / 30) * stats.t.ppf(0.975, 29))


def test_gain_of_another_metric_comes_from_draws() -> None:
    rng = np.random.default_rng(4)
    pair = checked_pair(predictions(rng.random(200) < 0.9), predictions(rng.random(200) < 0.7))
    found = paired_gain(pair, SQUARE, 0.0, Bootstrap(resamples=4000, seed=2), 0.025)
    ours, theirs = pair.first["right"], pair.second["right"]
    assert found.value == pytest.approx(ours.mean() ** 2 - theirs.mean() ** 2)
    # The delta method: the gradient of the square is twice the mean.
    error = np.std(2 * ours.mean() * ours - 2 * theirs.mean() * theirs) / math.sqrt(200)
    row = pair.typical_change(SQUARE) / 200
    expected = math.sqrt(error**2 + row * found.value / 2) * stats.t.ppf(0.975, 199)
    assert found.high - found.value == pytest.approx(expected, rel=0.04)
    assert paired_gain(pair, SQUARE, 0.0, Bootstrap(resamples=50, seed=2), 0.025) != paired_gain(
        pair, SQUARE, 0.0, Bootstrap(resamples=50, seed=3), 0.025
    )
    few = checked_pair(predictions(np.array([1.0, 0.0])), predictions(np.array([0.0, 0.0])))
    assert paired_gain(few, SQUARE, 0.0, Bootstrap(resamples=50), 0.025).value == 0.25
    with pytest.raises(
        UserError, match=r"^1 row\(s\) to measure on\. An interval needs at least two rows; use a larger"
    ):
        paired_gain(checked_pair(predictions(np.ones(1)), predictions(np.ones(1))), RIGHT, 0.0, Bootstrap(), 0.025)


def test_bias_of_an_inflated_metric_is_taken_out_of_the_gain() -> None:
    rng = np.random.default_rng(5)
    pair = checked_pair(predictions(rng.random(12)), predictions(np.linspace(0.4, 0.6, 12)))
    plain = paired_gain(pair, replace(BIASED, inflated=False), 0.0, Bootstrap(resamples=3000, seed=1), 0.025)
    moved = paired_gain(pair, BIASED, 0.0, Bootstrap(resamples=3000, seed=1), 0.025)
    index = np.random.default_rng(9).integers(0, 12, (20_000, 12))
    bias = float((BIASED.score(pair.first, index) - BIASED.score(pair.second, index)).mean()) - plain.value
    assert plain.value == pytest.approx(pair.first["right"].std() - pair.second["right"].std())
    assert bias < -0.005
    assert moved.value == pytest.approx(plain.value - bias, abs=0.002)


# -- cutting -----------------------------------------------------------------------------------


def part(name: str, rows: int, column: str = "source") -> Slice:
    return Slice(column, name, np.arange(rows))


def test_small_slices_are_pooled_by_column_at_the_limit() -> None:
    parts = [part("a", 5), part("b", 4), part("c", 1), part("d", 2, "kind"), part("e", 1, "kind"), part("f", 4, "one")]
    tested, untested = pool_small(parts, 5, 100)
    assert [(each.column, each.name, len(each.rows)) for each in tested] == [
        ("source", "a", 5),
        ("source", "(2 small ones together)", 5),
    ]
    assert [each.name for each in untested] == ["d", "e", "f"]
    assert pool_small(parts[:3], 5, 5)[0] == parts[:1], "all rows together are no slice"
    tested, _ = pool_small([part("f", 4)], 4, 100)
    assert [each.name for each in tested] == ["f"]


def test_slices_have_at_least_two_rows_and_not_all() -> None:
    frame = pd.DataFrame({LENGTH: [1] * 6, "source": ["a", "a", "b", "b", "b", " "], "all": ["x"] * 6})
    assert [(each.name, len(each.rows)) for each in cut_slices(frame, ["source", "all"], 1)] == [("a", 2), ("b", 3)]
    assert [each.name for each in cut_slices(frame, ["source"], 3)] == ["b"]
    lengths = frame.assign(**{LENGTH: [1, 2, 3, 4, 5, 6]})
    found = cut_slices(lengths, [], 1)
    assert [each.column for each in found] == [LENGTH] * len(found)
    assert [each.name for each in found] == ["1 to 2 tokens", "4 to 5 tokens"]


@pytest.mark.parametrize(("option", "verdict"), [("report", "undecided"), ("fail", "fail")])
def test_label_that_is_never_predicted_is_told(option: Any, verdict: str) -> None:
    from textmill.evaluation.gate import _labels

    predictions = pd.DataFrame({"label": ["a", "b", "b", "c"], "prediction": ["a", "b", "a", "a"]})
    challenger = SimpleNamespace(name="version 3", predictions=predictions)
    config = GateConfig(never_predicted=option)
    [check] = _labels(SimpleNamespace(challenger=challenger), config)  # type: ignore[arg-type]
    assert check.status == verdict
    assert check.words == "version 3 never predicts the label c, which 1 evaluation rows have"
