"""The `evaluate` section: intervals, slices, baselines."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import PluginSpec


class EvaluateConfig(Section):
    """How the trained model is measured.

    Attributes:
        seed: Of the bootstrap and the baselines.
        model: The `textmill.models.base.Model` plugin that was trained.
        resamples: Bootstrap resamples for an interval.
        confidence: Of the intervals.
        slice_columns: Columns by which figures are given apart, beside text length.
        min_slice: Smaller slices are left out.
        worst: Rows in the table of worst errors.
        baselines: Options of the task's own baselines.
    """

    seed: int
    task: PluginSpec
    model: PluginSpec
    resamples: Annotated[int, Field(ge=100)] = 1000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    slice_columns: list[str] = ["source"]
    min_slice: Annotated[int, Field(ge=1)] = 30
    worst: Annotated[int, Field(ge=1)] = 25
    baselines: dict[str, Any] = {}
