"""A lead is positive where the model is better, also in a metric of which less is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from textmill.errors import UserError
from textmill.evaluation import report
from textmill.evaluation.comparison_page import parts_of, render_comparison
from textmill.evaluation.evaluate import _require_finite
from textmill.evaluation.measurements import Measurements
from textmill.export.model_card import _lead
from textmill.metrics.bootstrap import Interval
from textmill.tasks.base import Task

CLOSER = Interval(-0.8, -1.0, -0.6)  # mean absolute errors: ours minus theirs


def test_card_of_a_smaller_error_shows_a_positive_lead() -> None:
    assert _lead(CLOSER.as_dict(), higher_is_better=False) == "0.8000 [0.6000, 1.0000]"
    assert _lead(CLOSER.as_dict(), higher_is_better=True) == "-0.8000 [-1.0000, -0.6000]"
    assert _lead({"value": 0.0, "low": 0.0, "high": 0.0}, higher_is_better=False) == "0.0000 [0.0000, 0.0000]"
    assert _lead(None, higher_is_better=False) == "-"


@pytest.mark.parametrize(("higher", "verdict", "value"), [(False, "better", 0.8), (True, "worse", -0.8)])
def test_report_of_a_smaller_error_shows_a_positive_lead(higher: bool, verdict: str, value: float) -> None:
    found = Measurements(
        main="mae",
        test={"mae": Interval(0.2, 0.1, 0.3)},
        baselines={"mean": {"mae": Interval(1.0, 0.9, 1.1)}},
        difference={"mean": {"mae": CLOSER}},
        slices=[],
        higher_is_better={"mae": higher},
    )
    lead = report._lead(found, "mean")
    assert (lead["verdict"], lead["lead"].value) == (verdict, value)


def test_comparison_of_a_smaller_error_shows_a_positive_gain() -> None:
    pair = (Interval(1.0, 0.9, 1.1), Interval(0.2, 0.1, 0.3))
    metrics, differences = {"mae": pair, "f1": pair}, {"mae": CLOSER, "f1": CLOSER}
    better = {"mae": False, "f1": True}
    parts = parts_of(["a", "b"], metrics, differences, better, [], {}, {})
    assert parts[0].table.head[-1] == "gain"
    assert [row[-1] for row in parts[0].table.rows] == [
        "+0.800 [+0.600, +1.000]",
        "-0.800 [-1.000, -0.600]",
    ]
    page = render_comparison(["a", "b"], "Measured.", parts, metrics, differences, better)
    assert "positive where it is better" in page


class _Rows:
    """The examples of two rows of three and five tokens."""

    def __len__(self) -> int:
        return 2

    def columns(self) -> dict[str, Any]:
        return {"input_ids": [[1, 2, 3], [1, 2, 3, 4, 5]]}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused_except_padding(value: float) -> None:
    task = Task.build({"_target_": "textmill.tasks.text_classification.TextClassification"})
    tokens = np.zeros((2, 5, 2), np.float32)
    tokens[0, 3:] = np.nan
    _require_finite({"tokens": tokens, "text": np.array(["a", "b"])}, task, _Rows())
    for name, place, shape in (("logits", (0, 1), (2, 2)), ("tokens", (0, 2, 1), (2, 5, 2)), ("nll", (1,), (2,))):
        outputs = {name: np.zeros(shape, np.float32)}
        outputs[name][place] = value
        with pytest.raises(UserError, match=f"the model's {name} are not finite numbers in 1 of 2 test rows"):
            _require_finite(outputs, task, _Rows())
    infinite_padding = tokens.copy()
    infinite_padding[0, 4] = np.inf
    with pytest.raises(UserError, match="not finite"):
        _require_finite({"tokens": infinite_padding}, task, _Rows())
