"""A file of `conf/tune/`: what `textmill tune` varies, and how it searches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from textmill.config.section import Section

Scalar = bool | int | float | str


class RangeConfig(Section):
    """Numbers of a setting: `low` to `high`, or `choices`.

    Attributes:
        low: Smallest value; whole numbers at both ends give whole numbers.
        high: Largest value.
        log: Whether each factor is as likely as any other, as for a learning rate.
        step: Distance of two values; None takes any value of the range.
        choices: Values, or names of files of a group of `conf/`.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None
    choices: Annotated[list[Scalar], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> RangeConfig:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("needs either low and high, or choices")
        if self.low is not None and self.high is not None:
            if self.low >= self.high:
                raise ValueError("low must be below high")
            if self.log and (self.low <= 0 or self.step is not None):
                raise ValueError("log needs a low above 0, and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and (self.step is None or self.step % 1 == 0)


class TuneConfig(Section):
    """A search space, and how it is searched.

    Attributes:
        space: Key of the configuration or group of `conf/` -> its values.
        metric: Metric of the validations; None takes the one that picks the task's checkpoint.
        mode: Whether the metric is to be large (`max`) or small (`min`); needed with `metric`.
        sampler: `tpe` (Bergstra et al. 2011) learns from earlier trials, `random` does not.
        pruner: `median` stops a trial that is worse than half of the earlier ones at the same validation, `asha`
            (Li et al. 2020) one that is not among the best half at validations 1, 2, 4, ...; `none` stops none.
        startup: Trials at random before the sampler learns and the median prunes.
        seed: Seed of the sampler; each trial trains with the seed of the experiment.
    """

    space: Annotated[dict[str, RangeConfig], Field(min_length=1)]
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "asha", "none"] = "median"
    startup: Annotated[int, Field(ge=1)] = 5
    seed: int = 1

    @model_validator(mode="after")
    def _check(self) -> TuneConfig:
        if (self.metric is None) != (self.mode is None):
            raise ValueError("metric and mode go together")
        return self
