"""Quiet looks and planted changes, simulated on docstrings of the standard library; periods and their windows."""

from __future__ import annotations

import ast
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from textmill.evaluation.drift import _stability
from textmill.evaluation.drift_over_time import WINDOW, period_start

if TYPE_CHECKING:
    from bench.drift import World

MONDAY = datetime(2026, 1, 5, 23, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def pool() -> pd.DataFrame:
    """First lines of docstrings; the label is whether a class or a function has them."""
    rows = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                rows.append({"text": " ".join(text.split())[:200], "label": type(node).__name__})
    return pd.DataFrame(rows).drop_duplicates("text").reset_index(drop=True)


@pytest.fixture(scope="module")
def world(pool: pd.DataFrame, repository_root: Path) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository_root))
        from bench.drift import World

        return World(pool, 0, training=1000, held_out=500)


@pytest.mark.slow
def test_quiet_days_raise_no_alarm(world: World) -> None:
    days = world.looks(world.quiet(1000), 100)
    assert [day.drift.verdict for day in days] == ["no drift"] * 10
    assert [day.drift.rows for day in days] == [100, *[WINDOW] * 9]


@pytest.mark.slow
def test_planted_change_is_found_within_500_requests(world: World) -> None:
    quiet = world.rest.sample(300, random_state=2)
    changed = quiet.assign(text=[f"{text} {text}" for text in quiet.text])
    days = world.looks(pd.concat([quiet, changed, changed.iloc[:200]]), 100)
    verdicts = [day.drift.verdict for day in days]
    assert verdicts[:3] == ["no drift"] * 3
    assert "drift" in verdicts[3:8]


def test_rare_labels_raise_no_alarm_and_a_rare_label_that_grows_does() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.55, *np.geomspace(0.08, 0.0003, 27)])
    shares /= shares.sum()
    reference = random.multinomial(5000, shares).tolist()
    found = [_stability("answer", reference, random.multinomial(250, shares).tolist()).p_value for _ in range(1000)]
    assert sum(p_value < 0.001 for p_value in found) < 8, "1 of 1000 is expected; without joined labels over 20"
    grown = [160, *[0] * 26, 90]
    measure = _stability("answer", reference, grown)
    assert (measure.effect > measure.limit, measure.p_value < 1e-9) == (True, True)
    assert _stability("answer", [5, 0], [0, 0]).p_value == 1.0


@pytest.mark.parametrize(
    ("by", "start"), [("hour", "2026-01-05T23:00"), ("day", "2026-01-05T00:00"), ("week", "2026-01-05T00:00")]
)
def test_period_starts_in_utc(by: str, start: str) -> None:
    assert period_start(MONDAY, by).isoformat()[:16] == start  # type: ignore[arg-type]
