"""The gate says pass, fail or inconclusive for the right reason, and fails closed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from textmill.config.sections.gate import GateConfig
from textmill.evaluation.gate import Costs, GateInputs, MeasuredVersion, Verdict, judge
from textmill.metrics.base import Metric

ROWS = 400
RIGHT = Metric("share_right", lambda columns, index: columns["right"][index].mean(axis=1))
ERROR = Metric("error", lambda columns, index: 1 - columns["right"][index].mean(axis=1), higher_is_better=False)
DIGEST = "a" * 64


def predictions(right: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"row-{i}" for i in range(len(right))], "label": "x", "right": right.astype(float)})


def answers(wrong: range = range(0), rows: int = ROWS) -> pd.DataFrame:
    right = np.ones(rows)
    right[list(wrong)] = 0
    return predictions(right)


def material(ours: pd.DataFrame, theirs: pd.DataFrame | None, **changes: Any) -> GateInputs:
    rows = len(ours)
    frame = pd.DataFrame({"length": np.arange(rows) % 40, "source": np.where(np.arange(rows) < rows // 4, "a", "b")})
    champion = None if theirs is None else MeasuredVersion("version 1", DIGEST, theirs, Costs(10.0, 100.0, 20.0))
    challenger = MeasuredVersion("version 2", DIGEST, ours, Costs(10.0, 100.0, 20.0))
    found = GateInputs([RIGHT, ERROR], "share_right", ["label"], challenger, champion, DIGEST, frame, 0)
    return replace(found, **changes)


def gate(**options: Any) -> GateConfig:
    return GateConfig(**{"resamples": 500, **options})


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
    assert "another evaluation set" in verdict.reasons[0]


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
    assert failed(judge(replace(found, overlap=None), gate())) == ["overlap"]
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


def test_many_harmless_slices_refuse_seldom() -> None:
    """Ten slices and equally good models: the family errs at most about as often as asked."""
    chooser = np.random.default_rng(0)
    refused = 0
    for seed in range(60):
        ours, theirs = (predictions(chooser.random(600) < 0.8) for _ in range(2))
        frame = pd.DataFrame({"length": np.zeros(600, int), "source": np.arange(600) % 10})
        config = gate(seed=seed, resamples=300, slices={"margin": 0.0, "min_rows": 50})
        refused += "slice" in failed(judge(material(ours, theirs, frame=frame), config))
    assert refused <= 9


def test_margin_zero_is_no_non_inferiority() -> None:
    with pytest.raises(ValueError, match="needs a margin above 0"):
        gate(difference={"margin": 0})
