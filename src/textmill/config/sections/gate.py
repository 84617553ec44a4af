"""The `gate` section: what a version must show before it becomes the champion.

No stage lists it under `params:`, so changing it never runs a stage again.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from textmill.config.section import Section
from textmill.config.types import Fraction

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DifferenceConfig(Section):
    """The claim about challenger minus champion that the paired bootstrap must support.

    Attributes:
        claim: `superiority`: better by more than `margin`. `non_inferiority`: worse by less than it.
        metric: What to compare; None is the task's main metric.
        margin: In the metric's own unit.
    """

    claim: Literal["superiority", "non_inferiority"] = "non_inferiority"
    metric: str | None = None
    margin: NotNegative = 0.005

    @model_validator(mode="after")
    def _some_margin(self) -> Self:
        if self.claim == "non_inferiority" and self.margin == 0:
            raise ValueError("non_inferiority needs a margin above 0; without one it is superiority")
        return self


class SlicesConfig(Section):
    """Parts of the evaluation set on which the challenger must do no harm.

    Attributes:
        columns: By which the set is cut, beside text length.
        min_rows: Smaller slices are listed and not tested.
        margin: Loss in a slice that is let pass, in the metric's own unit.
        significance: Chance that a harmless challenger is refused by any of the slices (Holm 1979).
        required: Values of a column that must be there with `min_rows` rows, or the gate fails.
    """

    columns: list[str] = ["source"]
    min_rows: Annotated[int, Field(ge=2)] = 50
    margin: NotNegative = 0.02
    significance: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    required: dict[str, list[str]] = {}


class BudgetConfig(Section):
    """What a resource may cost: as a multiple of the champion's, and in its own unit; None is no limit."""

    ratio: Positive | None = None
    limit: Positive | None = None


class BudgetsConfig(Section):
    """Costs of both versions, measured side by side.

    Attributes:
        latency: 95th percentile of the time for one row, in milliseconds.
        memory: Resident memory of a fresh process that has answered, in MB.
        size: The graph that answers, in MB.
        rows: Rows that are timed.
        repeats: Times that each row is timed at least; the fastest counts, so that a busy machine weighs
            less, and further times follow until the figures settle.
    """

    latency: BudgetConfig = BudgetConfig(ratio=1.5)
    memory: BudgetConfig = BudgetConfig(ratio=1.25)
    size: BudgetConfig = BudgetConfig(ratio=1.25)
    rows: Annotated[int, Field(ge=1)] = 200
    repeats: Annotated[int, Field(ge=1)] = 3


class GateConfig(Section):
    """The gate of `textmill promote`.

    Attributes:
        precision: Which graph is measured: the one that serves.
        floors: Least value of a metric, or the greatest where less is better.
        difference: The claim about challenger and champion.
        slices: Where no harm may be done.
        budgets: Of latency, memory and size.
        max_overlap: Share of evaluation rows whose normalised text the training split holds too.
        resamples: Of the bootstrap.
        confidence: Of its intervals.
        seed: Of the bootstrap, and of the choice of timed rows.
    """

    precision: Literal["int8", "fp32"] = "int8"
    floors: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    difference: DifferenceConfig = DifferenceConfig()
    slices: SlicesConfig = SlicesConfig()
    budgets: BudgetsConfig = BudgetsConfig()
    max_overlap: Fraction = 0.0
    resamples: Annotated[int, Field(ge=200)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0
