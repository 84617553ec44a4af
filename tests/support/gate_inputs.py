"""Two versions whose answers are given row by row, for the promotion gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from textmill.config.sections.gate import GateConfig
from textmill.evaluation.gate import Costs, GateInputs, MeasuredVersion
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
