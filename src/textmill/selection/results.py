"""Records of what a screening measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textmill.metrics.bootstrap import Interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rung:
    """A candidate's state after one rung.

    Attributes:
        share: Share of the full training that is done.
        samples: Rows trained on so far, repetitions counted.
        quality: The main metric on the validation split.
        seconds: Wall time of this rung.
        whole_seconds: Wall time of the full training, at the speed of this rung.
    """

    share: float
    samples: int
    quality: Interval
    seconds: float
    whole_seconds: float


@dataclass(frozen=True)
class ServingCost:
    """Latency in ms for one input (95th percentile) and size in MB on disk."""

    latency: float
    size: float


@dataclass(frozen=True)
class Result:
    """A candidate at the end of the screening.

    Attributes:
        baseline: Whether it is a baseline or a chat model, which the pipeline does not export.
        rungs: Measurements; empty if it was never trained.
        expected: The main metric extrapolated to the full training, or None where that is unreliable.
        serving: Latency and size, or None if not measured.
        excluded: The reason for its exclusion, or None.
        params: The content of `params.yaml` that adopts it.
        asked: Whether it is a chat model.
    """

    name: str
    title: str
    baseline: bool
    rungs: list[Rung] = field(default_factory=list)
    expected: float | None = None
    serving: ServingCost | None = None
    excluded: str | None = None
    predictions: pd.DataFrame | None = None
    params: dict[str, Any] = field(default_factory=dict)
    asked: bool = False

    @property
    def quality(self) -> Interval:
        """The main metric as last measured."""
        return self.rungs[-1].quality

    @property
    def share(self) -> float:
        """Share of the full training that is done."""
        return self.rungs[-1].share if self.rungs else 0.0

    @property
    def train_seconds(self) -> float:
        """Wall time of the full training, at the speed of the last rung."""
        return self.rungs[-1].whole_seconds


def on_common_rows(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return two tables of predictions on the rows that both have: a chat model is asked for a part of the split."""
    if len(first) == len(second):
        return first, second
    return first[first["id"].isin(second["id"])], second[second["id"].isin(first["id"])]
