"""The `evaluate` section: intervals, slices, baselines."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import PluginSpec


class EvaluateConfig(Section):
    """Options of the evaluation.

    Attributes:
        seed: Seed of the bootstrap and the baselines.
        resamples: Number of bootstrap resamples.
        slice_columns: Columns that cut slices, in addition to text length.
        min_slice: Smallest slice to measure, in rows.
        worst: Number of rows in the table of worst errors.
        label_issues: Whether to search the training split for labels that are likely wrong.
        baselines: Options of the task's baselines.
        suite: Folder of `conf/suites/` whose `suite.yaml` lm-evaluation-harness runs; for language models only.
        suite_sha256: Digest of that folder, which `compose` sets.
    """

    seed: int
    task: PluginSpec
    model: PluginSpec
    resamples: Annotated[int, Field(ge=100)] = 1000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    slice_columns: list[str] = ["source"]
    min_slice: Annotated[int, Field(ge=1)] = 30
    worst: Annotated[int, Field(ge=1)] = 25
    label_issues: bool = True
    baselines: dict[str, Any] = {}
    suite: Annotated[str, Field(pattern=r"^[\w-]+$")] | None = None
    suite_sha256: str | None = None
