"""What the screening found, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textmill.metrics.bootstrap import Interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rung:
    """How far a candidate was at one point, and how good.

    Attributes:
        share: Of its recipe that is done.
        samples: Rows trained on until then, repetitions counted.
        quality: The main metric on the validation split.
        seconds: Wall time of this rung.
        whole_seconds: Wall time of the whole recipe's training, by the speed of this rung.
    """

    share: float
    samples: int
    quality: Interval
    seconds: float
    whole_seconds: float


@dataclass(frozen=True)
class Served:
    """What an answer costs: ms for one input (95th percentile) and MB on disk."""

    latency: float
    size: float


@dataclass(frozen=True)
class Result:
    """A candidate at the end of the screening.

    Attributes:
        name: Of the candidate.
        title: In words.
        baseline: Whether it is a baseline, which the pipeline does not export.
        rungs: What was measured; empty where it was never trained.
        expected: The main metric after the whole recipe, extrapolated; None where that cannot be told.
        served: What an answer costs; None where it was not measured.
        excluded: Why it is out of the question; None when it is in.
        predictions: For the validation split.
        lines: Of `params.yaml`, to adopt it.
    """

    name: str
    title: str
    baseline: bool
    rungs: list[Rung] = field(default_factory=list)
    expected: float | None = None
    served: Served | None = None
    excluded: str | None = None
    predictions: pd.DataFrame | None = None
    lines: dict[str, Any] = field(default_factory=dict)

    @property
    def quality(self) -> Interval:
        """As measured last."""
        return self.rungs[-1].quality

    @property
    def share(self) -> float:
        """Of the recipe that was done."""
        return self.rungs[-1].share if self.rungs else 0.0

    @property
    def train_seconds(self) -> float:
        """Wall time of the whole recipe, by the last rung's speed."""
        return self.rungs[-1].whole_seconds
