"""Versions made with different test splits: the unseen rows decide, and too few of them decide nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from support.gate_inputs import answers, gate, material

from textmill.evaluation.gate import GateInputs, MeasuredVersion, UnseenRows, judge

OTHER = "b" * 64


def grown(
    ours: pd.DataFrame, theirs: pd.DataFrame, unseen: range, *, proven: range | None = None, unknown: bool = False
) -> GateInputs:
    """The champion was made with another split; rows outside `unseen` were in its training split."""
    whole = material(ours, theirs)
    assert whole.champion is not None
    whole = replace(whole, champion=replace(whole.champion, digest=OTHER))
    found = [part(whole, "version 2", unseen, "c" * 64, {"version 1"} if unknown else set())]
    if proven is not None:
        found.append(part(whole, "version 1", proven, "d" * 64, set()))
    return replace(whole, unseen=found)


def part(whole: GateInputs, owner: str, rows: range, digest: str, unknown: set[str]) -> UnseenRows:
    def cut(version: MeasuredVersion | None) -> MeasuredVersion | None:
        if version is None:
            return None
        return replace(version, digest=digest, predictions=version.predictions.iloc[list(rows)].reset_index(drop=True))

    challenger = cut(whole.challenger)
    assert challenger is not None
    frame = whole.frame.iloc[list(rows)].reset_index(drop=True)
    inputs = replace(whole, challenger=challenger, champion=cut(whole.champion), frame=frame, digest=digest)
    seen = {} if unknown else {"version 1": len(whole.frame) - len(rows)}
    return UnseenRows(owner, len(whole.frame), seen, unknown, inputs)


def test_judge_on_different_splits_decides_on_unseen_rows() -> None:
    """The champion knows the 200 rows it was trained on; on the others the challenger is better."""
    ours, theirs = answers(range(0, 400, 20)), answers(range(200, 400, 4))
    verdict = judge(grown(ours, theirs, range(200, 400)), gate())
    assert verdict.status == "pass", verdict.reasons
    said = [check.words for check in verdict.checks if check.name in ("digest", "unseen")]
    assert said[1] == "version 1 was made with another test split, so that rows decide which neither has seen"
    assert said[2] == (
        "200 of 400 rows of the test split of version 2 are unseen (version 1 has seen 200): these decide"
    )
    (difference,) = (check for check in verdict.checks if check.name == "difference")
    assert difference.figures["value"] == 0.2
    worse = judge(grown(answers(range(200, 300)), answers(), range(200, 400)), gate())
    assert worse.status == "fail"


def test_judge_with_too_few_unseen_rows_says_how_many_are_missing() -> None:
    verdict = judge(grown(answers(), answers(), range(370, 400)), gate())
    assert verdict.status == "inconclusive"
    assert verdict.reasons == [
        "30 of 400 rows of the test split of version 2 are unseen (version 1 has seen 370), "
        "100 are required: 70 are missing"
    ]
    assert not {"difference", "slice"} & {check.name for check in verdict.checks}
    assert judge(grown(answers(), answers(), range(370, 400)), gate(min_unseen=30)).status == "pass"


def test_judge_with_too_few_rows_of_today_decides_on_the_split_of_the_champion() -> None:
    found = grown(answers(), answers(range(100, 110)), range(390, 400), proven=range(50, 250))
    verdict = judge(found, gate())
    assert verdict.status == "pass", verdict.reasons
    assert [check.status for check in verdict.checks if check.name == "unseen"] == ["undecided", "pass"]
    assert any("of the test split of version 1 are unseen" in check.words for check in verdict.checks)


def test_judge_refuses_a_loss_on_the_split_that_the_champion_was_proven_on() -> None:
    found = grown(answers(range(0, 200, 2)), answers(), range(200, 400), proven=range(200))
    verdict = judge(found, gate())
    assert verdict.status == "fail"
    assert [check.name for check in verdict.checks if check.status == "fail"] == ["proven"]
    unclear = grown(answers(range(3)), answers(), range(200, 400), proven=range(200))
    verdict = judge(unclear, gate())
    assert verdict.status == "pass"
    assert [check.status for check in verdict.checks if check.name == "proven"] == ["undecided"]


def test_judge_with_unknown_seen_rows_is_inconclusive() -> None:
    verdict = judge(grown(answers(), answers(), range(200, 400), unknown=True), gate())
    assert verdict.status == "inconclusive"
    assert "it is not known which rows version 1 has seen" in verdict.reasons[0]


def test_judge_of_unseen_rows_compares_with_the_anchor_too() -> None:
    found = grown(answers(range(200, 260)), answers(range(200, 260)), range(200, 400))
    best = MeasuredVersion("version 0", "c" * 64, answers(range(200, 220)).iloc[200:400], found.challenger.costs)
    best = replace(best, predictions=best.predictions.reset_index(drop=True))
    inner = replace(found.unseen[0], inputs=replace(found.unseen[0].inputs, anchor=best))
    verdict = judge(replace(found, anchor=replace(best, digest=OTHER), unseen=[inner]), gate())
    assert verdict.status == "fail"
    assert [check.name for check in verdict.checks if check.status == "fail"][:1] == ["anchor"]
    assert np.isclose(next(check.figures["value"] for check in verdict.checks if check.name == "anchor"), -0.2)
