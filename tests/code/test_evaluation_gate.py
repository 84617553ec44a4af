"""The gate says pass, fail or inconclusive for the right reason, and fails closed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.gate_inputs import DIGEST, RIGHT, ROWS, answers, gate, material, predictions

from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.config.sections.gate import GateConfig
from textmill.errors import UserError
from textmill.evaluation.gate import Check, Costs, GateInputs, MeasuredVersion, Verdict, judge, slice_checks
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, paired_gain
from textmill.metrics.categories import category_metrics
from textmill.metrics.swaps import Pair


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if check.status == "fail"]


def test_equal_models_pass_non_inferiority_and_are_not_superior() -> None:
    same = material(answers(range(0, 400, 10)), answers(range(0, 400, 10)))
    verdict = judge(same, gate())
    assert verdict.status == "pass", verdict.reasons
    assert any("is not worse by 0.005 or more" in reason for reason in verdict.reasons)
    assert judge(same, gate(difference={"claim": "superiority", "margin": 0})).status == "fail"


def test_clearly_better_is_superior_and_clearly_worse_is_not() -> None:
    good, bad = answers(range(20)), answers(range(0, 400, 2))
    superior = gate(difference={"claim": "superiority", "margin": 0.1})
    assert judge(material(good, bad), superior).status == "pass"
    assert judge(material(bad, good), superior).status == "fail"
    worse = judge(material(bad, good), gate())
    assert worse.status == "fail"
    assert "version 2 is worse by 0.005 or more in share_right: gain -0.4500" in " ".join(worse.reasons)


def test_few_rows_cannot_tell() -> None:
    verdict = judge(material(answers(range(3), 40), answers(range(2, 4), 40)), gate())
    assert verdict.status == "inconclusive"
    assert "may be worse by 0.005 or more" in verdict.reasons[0]


def test_less_is_better_is_turned_around() -> None:
    config = gate(difference={"claim": "superiority", "metric": "error", "margin": 0.0}, floors={"error": 0.1})
    assert judge(material(answers(range(20)), answers(range(100))), config).status == "pass"
    assert judge(material(answers(range(100)), answers(range(20))), config).status == "fail"
    assert "floor" in failed(judge(material(answers(range(100)), None), config))


def test_rows_are_aligned_by_id() -> None:
    ours = answers(range(0, 400, 10))
    shuffled = ours.sample(frac=1, random_state=0)
    assert judge(material(ours, shuffled), gate()).status == "pass"


def test_first_champion_needs_floors_only() -> None:
    config = gate(floors={"share_right": 0.9}, difference={"claim": "superiority", "margin": 0.5})
    verdict = judge(material(answers(range(20)), None), config)
    assert verdict.status == "pass"
    assert {check.name for check in verdict.checks} == {"digest", "overlap", "floor"}
    verdict = judge(material(answers(range(80)), None), config)
    assert verdict.status == "fail"
    assert verdict.reasons == ["share_right is 0.8000, at least 0.9 is required"]


# -- fails closed ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["challenger", "champion"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_fails(side: str, value: float) -> None:
    good, broken = answers(range(20)), answers(range(20))
    broken.loc[3, "right"] = value
    pair = (broken, good) if side == "challenger" else (good, broken)
    verdict = judge(material(*pair), gate())
    assert verdict.status == "fail"
    assert any("not a finite number" in reason for reason in verdict.reasons)


def test_metric_that_is_nan_fails_even_without_a_floor() -> None:
    nothing = Metric("nothing", lambda columns, index: np.full(len(index), np.nan))
    verdict = judge(material(answers(), None, metrics=[RIGHT, nothing]), gate())
    assert verdict.status == "fail"
    assert "nothing is nan" in verdict.reasons[0]


@pytest.mark.parametrize("options", [{"floors": {"f2": 0.1}}, {"difference": {"metric": "f2"}}])
def test_missing_metric_fails(options: dict[str, Any]) -> None:
    verdict = judge(material(answers(), answers()), gate(**options))
    assert verdict.status == "fail"
    assert any("f2" in reason and "not a metric of this task" in reason for reason in verdict.reasons)


def test_unmeasurable_predictions_fail() -> None:
    verdict = judge(material(answers().drop(columns="right"), answers()), gate(floors={"share_right": 0.5}))
    assert verdict.status == "fail"
    reason = "the predictions cannot be measured (KeyError('right'))"
    assert [(check.name, check.words) for check in verdict.checks if check.status == "fail"] == [
        (name, f"{name}: {reason}") for name in ("floors", "difference", "slices")
    ]
    verdict = judge(material(answers(), answers().drop(columns="right")), gate())
    assert verdict.status == "fail"
    assert "cannot be measured" in verdict.reasons[0]


@pytest.mark.parametrize("digest", [None, "b" * 64])
@pytest.mark.parametrize("side", ["challenger", "champion"])
def test_unequal_digests_fail_and_nothing_is_measured(side: str, digest: str | None) -> None:
    found = material(answers(), answers())
    changed = replace(found, **{side: replace(getattr(found, side), digest=digest)})
    verdict = judge(changed, gate())
    assert verdict.status == "fail"
    assert {check.name for check in verdict.checks} == {"digest"}
    shown = f"({digest[:12] if digest else 'unknown'} instead of {found.digest[:12]})"
    assert verdict.reasons == [
        f"version {2 if side == 'challenger' else 1} was built with another evaluation set {shown}"
    ]


def test_other_rows_or_targets_fail() -> None:
    ours = answers()
    other = answers().assign(label=["y"] + ["x"] * (ROWS - 1))
    assert "differ in label" in judge(material(ours, other), gate()).reasons[0]
    other = answers().assign(id=[f"other-{i}" for i in range(ROWS)])
    assert "different rows" in judge(material(ours, other), gate()).reasons[0]


def test_empty_slices_fail() -> None:
    found = material(answers(), answers())
    empty = found.frame.assign(source=None)
    assert "column 'source' of the evaluation set is empty" in judge(replace(found, frame=empty), gate()).reasons[0]
    assert "no column 'site'" in judge(found, gate(slices={"columns": ["site"]})).reasons[0]
    required = gate(slices={"required": {"source": ["a", "c"]}, "min_rows": 50})
    assert judge(found, required).reasons == ["the required slice source c is empty"]
    required = gate(slices={"required": {"source": ["a"]}, "min_rows": 101})
    assert judge(found, required).reasons == ["the required slice source a has 100 rows, 101 are required"]


def test_overlap_fails_and_unknown_overlap_fails() -> None:
    found = material(answers(), answers())
    assert failed(judge(replace(found, overlap=1), gate())) == ["overlap"]
    unknown = judge(replace(found, overlap=None), gate())
    assert failed(unknown) == ["overlap"]
    assert unknown.reasons == ["the training rows of version 2 are not available"]
    assert judge(replace(found, overlap=1), gate(max_overlap=0.01)).status == "pass"


@pytest.mark.parametrize("cost", ["latency", "memory", "size"])
def test_budgets_are_held(cost: str) -> None:
    found = material(answers(), answers())
    dear = replace(found.challenger, costs=replace(found.challenger.costs, **{cost: 1000.0}))
    assert failed(judge(replace(found, challenger=dear), gate())) == [cost]
    unknown = replace(found.challenger, costs=replace(found.challenger.costs, **{cost: float("nan")}))
    assert failed(judge(replace(found, challenger=unknown), gate())) == [cost]
    limited = gate(budgets={cost: {"limit": 5.0}})
    assert failed(judge(replace(found, champion=None), limited)) == [cost]


# -- slices ----------------------------------------------------------------------------------


def test_harm_in_one_slice_fails_where_the_whole_gains() -> None:
    ours, theirs = answers(range(60)), answers(range(100, 400))
    verdict = judge(material(ours, theirs), gate())
    assert verdict.status == "fail"
    assert failed(verdict) == ["slice"]
    assert "slice source a (100 rows) loses more than 0.02" in verdict.reasons[0]
    small = judge(material(ours, theirs), gate(slices={"min_rows": 150}))
    assert small.status == "pass"
    assert any("1 slices of fewer than 150" in reason or "slices of fewer" in reason for reason in small.reasons)


@pytest.mark.parametrize("slices", [2, 10, 150])
def test_many_harmless_slices_refuse_seldom(slices: int) -> None:
    """Equally good models: the family errs at most about as often as asked, at any number of slices."""
    chooser = np.random.default_rng(0)
    refused = 0
    for seed in range(30):
        right = chooser.random(60 * slices) < 0.8
        ours, theirs = (predictions(right ^ (chooser.random(len(right)) < 0.1)) for _ in range(2))
        config = gate(seed=seed, resamples=300, slices={"margin": 0.0})
        checks = slice_checks(material(ours, theirs, frame=in_slices(len(right), slices)), config)
        refused += any(check.status == "fail" for check in checks)
    assert refused <= 4


def in_slices(rows: int, slices: int) -> pd.DataFrame:
    return pd.DataFrame({"length": np.ones(rows, int), "source": np.arange(rows) * slices // rows})


def labelled(right: np.ndarray) -> pd.DataFrame:
    label = np.arange(len(right)) % 2
    names = np.array(["no", "yes"])
    return predictions(right).assign(label=names[label], prediction=names[np.where(right, label, 1 - label)])


@pytest.mark.parametrize("slices", [3, 110, 500])
@pytest.mark.parametrize("metric", ["share_right", "weighted_f1"])
def test_slice_that_loses_everything_fails_among_any_number(slices: int, metric: str) -> None:
    """A slice without a right answer has no variance; 2,000 draws with Holm could not see it from 101 slices on."""
    chooser = np.random.default_rng(slices)
    right = chooser.random(50 * slices) < 0.9
    ours, theirs = (right ^ (chooser.random(len(right)) < 0.05) for _ in range(2))
    ours[50:100] = False
    frame = in_slices(len(ours), slices)
    config = gate(difference={"metric": metric}, resamples=200, floors={})
    metrics = [RIGHT, *category_metrics(["no", "yes"])]
    checks = slice_checks(material(labelled(ours), labelled(theirs), frame=frame, metrics=metrics), config)
    found = [check.words for check in checks if check.status == "fail"]
    assert len(found) == 1
    assert found[0].startswith("slice source 1 (50 rows) loses more than 0.02 in ")


def test_slice_with_too_few_rows_cannot_be_told() -> None:
    """60 rows that lose ten points are neither a proven loss nor evidence of none."""
    theirs = np.ones(5060, bool)
    theirs[60:][::20] = False
    ours = theirs.copy()
    ours[:9] = False
    theirs[40:43] = False
    frame = in_slices(5060, 1).assign(source=np.where(np.arange(5060) < 60, "small", "large"))
    found = material(predictions(ours), predictions(theirs), frame=frame)
    by_slice = {check.figures["slice"]: check for check in slice_checks(found, gate())}
    assert (by_slice["small"].status, by_slice["small"].figures["result"]) == ("undecided", "cannot be decided")
    assert "cannot be decided in share_right: gain -0.1000" in by_slice["small"].words
    assert 0.1 < by_slice["small"].figures["smallest_loss"] < 0.4
    assert (by_slice["large"].status, by_slice["large"].figures["result"]) == ("pass", "kept")
    verdict = judge(found, gate())
    assert verdict.status == "pass"
    assert any("slice source small (60 rows) cannot be decided" in reason for reason in verdict.reasons)
    strict = judge(found, gate(slices={"undecided": "inconclusive"}))
    assert strict.status == "inconclusive"
    assert [check.figures["slice"] for check in strict.checks if check.status == "inconclusive"] == ["small"]


def test_loss_above_the_margin_is_never_told_as_none() -> None:
    """Whatever the number of rows: with 3.6 points lost, `kept` is wrong at a margin of 2."""
    for rows in (50, 250, 1000, 4000):
        theirs = np.ones(2 * rows, bool)
        ours = theirs.copy()
        ours[: round(0.036 * rows)] = False
        found = material(predictions(ours), predictions(theirs), frame=in_slices(2 * rows, 2))
        checks = list(slice_checks(found, gate()))
        assert checks[0].figures["result"] in ("lost", "cannot be decided"), rows
        assert "shows no loss" not in checks[0].words
        assert "loses less" not in checks[0].words
    assert checks[0].figures["result"] == "lost"


def test_agreement_of_few_rows_is_not_evidence() -> None:
    """Of 60 rows that agree, a loss of two points is not excluded; of 1,000 it is."""
    for rows, result in ((60, "cannot be decided"), (1000, "kept")):
        theirs = np.ones(2 * rows, bool)
        ours = theirs.copy()
        ours[rows:][::10] = False
        theirs[rows:][5::10] = False
        found = material(predictions(ours), predictions(theirs), frame=in_slices(2 * rows, 2))
        checks = list(slice_checks(found, gate()))
        assert checks[0].figures["result"] == result


@pytest.mark.parametrize("missing", [None, np.nan, "", "  "])
def test_rows_without_a_value_are_a_slice(missing: Any) -> None:
    theirs = np.ones(400, bool)
    ours = theirs.copy()
    ours[:60] = False
    source = np.where(np.arange(400) < 80, "x", "rest").astype(object)
    source[:80] = missing
    frame = pd.DataFrame({"length": np.arange(400) % 7, "source": source})
    verdict = judge(material(predictions(ours), predictions(theirs), frame=frame), gate())
    assert any(reason.startswith("slice source (empty) (80 rows) loses more than 0.02") for reason in verdict.reasons)
    required = gate(slices={"required": {"source": ["(empty)"]}})
    checks = slice_checks(material(predictions(ours), predictions(theirs), frame=frame), required)
    assert not any("required slice" in check.words for check in checks)


def test_small_slices_are_tested_together_or_counted() -> None:
    theirs = np.ones(1000, bool)
    ours = theirs.copy()
    ours[:100] = False
    source = np.where(np.arange(1000) < 100, np.arange(1000) // 10, 99)
    found = material(predictions(ours), predictions(theirs), frame=pd.DataFrame({"length": 1, "source": source}))
    reasons = judge(found, gate()).reasons
    assert any(reason.startswith("slice source (10 small ones together) (100 rows) loses more") for reason in reasons)
    (check,) = [check for check in slice_checks(found, gate(slices={"min_rows": 200})) if "small" in check.figures]
    assert (check.status, check.figures["small"], check.figures["rows"]) == ("undecided", 10, 100)
    assert check.words == "10 slices of fewer than 200 rows (100 in all) were not tested"


# -- anchor and looks ------------------------------------------------------------------------


def versus_anchor(ours: int, champion: int, anchor: int, **changes: Any) -> GateInputs:
    """Versions with so many wrong answers of 20,000, each of them wrong where a better one is."""
    tables = [answers(range(wrong), 20_000) for wrong in (ours, champion, anchor)]
    measured = MeasuredVersion("version 0", DIGEST, tables[2], Costs(10.0, 100.0, 20.0))
    everything = {"frame": in_slices(20_000, 1), "metrics": [RIGHT]}
    return material(tables[0], tables[1], anchor=replace(measured, **changes), **everything)


def test_losses_add_up_against_the_anchor() -> None:
    assert judge(versus_anchor(65, 0, 0), gate()).status == "pass"
    verdict = judge(versus_anchor(130, 65, 0), gate())
    assert verdict.status == "fail"
    assert failed(verdict) == ["anchor"]
    assert "is worse by 0.005 or more than the anchor, version 0, in share_right: gain -0.0065" in verdict.reasons[0]
    assert judge(replace(versus_anchor(130, 65, 0), anchor=None), gate()).status == "pass"


def test_slices_and_costs_add_up_against_the_anchor() -> None:
    frame = in_slices(20_000, 100)
    found = replace(versus_anchor(64, 61, 0), frame=frame)
    assert failed(judge(found, gate())) == ["slice"]
    assert "loses more than 0.02 to the anchor, version 0, in share_right" in judge(found, gate()).reasons[0]
    found = versus_anchor(0, 0, 0, costs=Costs(6.0, 100.0, 20.0))
    assert judge(found, gate()).reasons[0].endswith("1.5 times the anchor's 6.00 is allowed")


def test_anchor_of_another_evaluation_set_gives_way_to_the_champion() -> None:
    verdict = judge(versus_anchor(60, 0, 0, digest="b" * 64), gate())
    assert verdict.status == "pass"
    assert any("was the anchor, but on another evaluation set" in reason for reason in verdict.reasons)
    assert judge(versus_anchor(130, 65, 0, digest="b" * 64), gate()).status == "pass"


def test_proven_better_is_decided_against_the_anchor() -> None:
    assert not judge(versus_anchor(30, 60, 0), gate()).proven_better
    assert judge(versus_anchor(0, 60, 60), gate()).proven_better
    assert not judge(versus_anchor(60, 60, 60), gate()).proven_better


def test_later_looks_need_more() -> None:
    ours, theirs = answers(range(50), 4000), answers(range(40, 90), 4000)
    statuses, widths = [], []
    for look in (1, 2, 20, 200):
        verdict = judge(material(ours, theirs, look=look), gate(slices={"margin": 0.2}, difference={"margin": 0.01}))
        (figures,) = [check.figures for check in verdict.checks if check.name == "difference"]
        statuses.append(verdict.status)
        widths.append(figures["high"] - figures["low"])
    assert statuses == ["pass", "pass", "pass", "inconclusive"]
    assert widths == sorted(widths)
    assert "98.3% interval" in judge(material(ours, theirs, look=2), gate()).reasons[0]
    assert "look 2 at this evaluation set" in judge(material(ours, theirs, look=2), gate()).reasons[0]


def test_looks_spend_no_more_than_there_is() -> None:
    for spending in ("decreasing", "even"):
        looks = gate(looks={"spending": spending, "planned": 7}).looks
        assert sum(looks.share(look) for look in range(1, 10_000)) <= 1
        assert looks.share(1) > 0
    config = gate(looks={"spending": "even", "planned": 7})
    used_up = judge(material(answers(), answers(), look=8), config)
    assert used_up.status == "inconclusive"
    assert "the 7 looks planned for this evaluation set are used up" in used_up.reasons[0]
    assert gate(looks={"spending": "none"}).looks.share(9) == 0.5


@pytest.mark.parametrize("differ", [0.2, 0.02])
def test_of_200_worse_challengers_none_is_promoted(differ: float) -> None:
    """In 20 sequences on one split, each challenger worse by the margin: at most 5 % of the sequences promote one."""
    chooser = np.random.default_rng(0)
    bootstrap, promoted = Bootstrap(200), 0
    config = gate()
    for _ in range(20):
        champion = chooser.random(1500) < 0.85
        lows = []
        for look in range(1, 201):
            lost = champion & (chooser.random(1500) < (differ + 0.005) / 2 / 0.85)
            won = ~champion & (chooser.random(1500) < (differ - 0.005) / 2 / 0.15)
            pair = Pair({"right": (champion & ~lost | won).astype(float)}, {"right": champion.astype(float)})
            alpha = (1 - config.confidence) * config.looks.share(look)
            lows.append(paired_gain(pair, RIGHT, -0.005, bootstrap, alpha).low)
        promoted += max(lows) > -0.005
    assert promoted <= 2


# -- settings that cannot fail ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"resamples": 200, "slices": {"significance": 0.001}}, "no slice can fail .* set at least 1000"),
        ({"slices": {"significance": 0.0001}, "resamples": 2000}, "set at least 10000"),
        ({"slices": {"min_rows": 4}}, "min_rows = 4 rows can never fail .* to at least 5"),
        ({"slices": {"min_rows": 5, "significance": 0.02}}, "to at least 6"),
        ({"slices": {"min_rows": 100_000_000}}, "less than or equal to 10000"),
        ({"max_overlap": 1.0}, "less than or equal to 0.5"),
    ],
)
def test_settings_that_cannot_fail_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GateConfig(**options)


@pytest.mark.parametrize("key", ["difference", "slices"])
def test_margin_that_no_model_loses_is_refused(repository_root: Path, key: str) -> None:
    layout = Layout(repository_root)
    compose(layout, [f"gate.{key}.margin=0.5"])
    with pytest.raises(UserError, match=rf"gate\.{key}\.margin.* hardly lose more than 0.5 of weighted_f1"):
        compose(layout, [f"gate.{key}.margin=0.9"])


def test_margin_zero_is_no_non_inferiority() -> None:
    with pytest.raises(ValueError, match="needs a margin above 0"):
        gate(difference={"margin": 0})


def test_verdict_as_plain_values() -> None:
    verdict = Verdict([Check("difference", "pass", "good", {"low": 0.1}), Check("slice", "undecided", "few rows")])
    assert verdict.as_dict() == {
        "verdict": "pass",
        "reasons": ["good", "few rows"],
        "checks": [
            {"name": "difference", "status": "pass", "words": "good", "figures": {"low": 0.1}},
            {"name": "slice", "status": "undecided", "words": "few rows", "figures": {}},
        ],
    }
