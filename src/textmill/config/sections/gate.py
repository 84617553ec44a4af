"""The `gate` section: conditions for promotion to champion.

No stage depends on it: a change never reruns a stage.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from textmill.config.section import Section

LARGEST_LOSS = {
    **dict.fromkeys(("accuracy", "weighted_f1", "macro_f1", "f1", "exact_match"), 1.0),
    **dict.fromkeys(("mean_reciprocal_rank", "recall_at_1", "recall_at_10"), 1.0),
    **dict.fromkeys(("matthews_correlation", "spearman", "pearson"), 2.0),
    **dict.fromkeys(("bleu", "chrf", "rouge1", "rouge2", "rougeL"), 100.0),
}
"""Range of the metrics that have one: no model can lose more, and few can lose more than half of it."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DifferenceConfig(Section):
    """The claim about challenger minus champion that the paired bootstrap must support.

    Attributes:
        claim: `superiority`: better by more than `margin`. `non_inferiority`: worse by less than `margin`.
        metric: Metric to compare; None is the task's main metric.
        margin: Margin in the metric's unit.
    """

    claim: Literal["superiority", "non_inferiority"] = "non_inferiority"
    metric: str | None = None
    margin: NotNegative = 0.005

    @model_validator(mode="after")
    def _some_margin(self) -> Self:
        if self.claim == "non_inferiority" and self.margin == 0:
            raise ValueError("non_inferiority needs a margin above 0; for no margin use superiority")
        return self


class SlicesConfig(Section):
    """Slices of the evaluation set on which the challenger must not be worse.

    Attributes:
        columns: Columns that cut slices, in addition to text length.
        min_rows: Smallest slice to test alone, in rows; smaller ones of a column are tested together.
        margin: Tolerated loss in a slice, in the metric's unit.
        significance: Family-wise error rate over all slices (Westfall & Young 1993): the probability
            that any slice refuses a challenger that loses no more than the margin.
        undecided: Effect of a slice with too few rows to tell. `report`: it is listed, since most test
            splits have such slices. `inconclusive`: nothing is promoted until all slices can be decided.
        required: Values by column that must have `min_rows` rows each.
    """

    columns: list[str] = ["source"]
    min_rows: Annotated[int, Field(ge=2, le=10_000)] = 50
    margin: NotNegative = 0.02
    significance: Annotated[float, Field(gt=0, lt=0.5, validate_default=True)] = 0.05
    undecided: Literal["report", "inconclusive"] = "report"
    required: dict[str, list[str]] = {}

    @field_validator("significance")
    @classmethod
    def _smallest_can_fail(cls, significance: float, info: ValidationInfo) -> float:
        rows = info.data.get("min_rows")
        if rows is not None and 0.5**rows >= significance:
            needed = math.floor(-math.log2(significance)) + 1
            raise ValueError(
                f"a slice of gate.slices.min_rows = {rows} rows can never fail at this significance; "
                f"set min_rows to at least {needed}"
            )
        return significance


class LooksConfig(Section):
    """Share of the error probability that each comparison on one evaluation set may use.

    The shares of all looks add up to one: of any number of challengers that are worse by the margin, one is
    promoted with a probability of at most `1 - confidence`. `none` gives each look half of it, as if it
    were the only one.

    Attributes:
        spending: `decreasing`: look k has the share 1 / (k (k + 1)), for ever. `even`: the same share for
            `planned` looks, then none is left. `none`: looks are counted, but cost nothing.
        planned: Number of looks for `even`.
    """

    spending: Literal["decreasing", "even", "none"] = "decreasing"
    planned: Annotated[int, Field(ge=2)] = 20

    def share(self, look: int) -> float:
        """Return the share of look number `look`, counted from 1; 0 if none is left."""
        if self.spending == "none":
            return 0.5
        if self.spending == "even":
            return 1 / self.planned if look <= self.planned else 0.0
        return 1 / (look * (look + 1))


class BudgetConfig(Section):
    """Budget of one cost: as a multiple of the champion's, and in its own unit; None is no limit."""

    ratio: Positive | None = None
    limit: Positive | None = None


class BudgetsConfig(Section):
    """Budgets of the costs, measured in one session for both versions.

    Attributes:
        latency: 95th percentile of the time for one row, in milliseconds.
        memory: Resident memory of a new process after prediction, in MB.
        size: Size of the served graph, in MB.
        rows: Number of timed rows.
        repeats: Smallest number of repetitions for each row. The fastest counts, which reduces the
            effect of a busy machine; more follow until the values are stable.
    """

    latency: BudgetConfig = BudgetConfig(ratio=1.5)
    memory: BudgetConfig = BudgetConfig(ratio=1.25)
    size: BudgetConfig = BudgetConfig(ratio=1.25)
    rows: Annotated[int, Field(ge=1)] = 200
    repeats: Annotated[int, Field(ge=1)] = 3


class GateConfig(Section):
    """The gate of `textmill promote`.

    Attributes:
        precision: Graph to measure; `auto` is the one that each version serves.
        floors: Smallest allowed value by metric; the largest one if lower is better.
        never_predicted: Effect of a label that occurs in the evaluation set and that the challenger never
            predicts: it is reported, or it fails the gate.
        min_unseen: Smallest number of rows to compare versions on that were made with different test splits.
        max_overlap: Largest share of evaluation rows whose normalised text is also in the training split.
        resamples: Number of draws of the bootstrap and of the test of slices.
        confidence: Confidence of the interval of the first comparison on an evaluation set.
        seed: Seed of the bootstrap and of the choice of timed rows.
    """

    precision: Literal["auto", "int8", "fp32"] = "auto"
    floors: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    difference: DifferenceConfig = DifferenceConfig()
    slices: SlicesConfig = SlicesConfig()
    looks: LooksConfig = LooksConfig()
    budgets: BudgetsConfig = BudgetsConfig()
    never_predicted: Literal["report", "fail"] = "report"
    min_unseen: Annotated[int, Field(ge=2)] = 100
    max_overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    resamples: Annotated[int, Field(ge=200, validate_default=True)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("resamples")
    @classmethod
    def _slices_can_fail(cls, resamples: int, info: ValidationInfo) -> int:
        slices = info.data.get("slices")
        if isinstance(slices, SlicesConfig) and resamples < (needed := math.ceil(1 / slices.significance)):
            raise ValueError(
                f"no slice can fail at gate.slices.significance {slices.significance:g} with so few draws; "
                f"set at least {needed}"
            )
        return resamples
