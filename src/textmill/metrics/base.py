"""What is measured, and what a report shows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

Outputs = dict[str, "NDArray[Any]"]
"""A model's raw outputs by name, one row an example: numbers in float32 (`logits`, say), or texts that it wrote."""


@dataclass(frozen=True)
class Metric:
    """A figure over a set of predictions that can be resampled quickly.

    Attributes:
        name: As logged, for example `weighted_f1`.
        score: Takes the predictions' columns (each an array of length n) and an index array of
            shape (resamples, n); gives the figure of every resample, shape (resamples,).
        higher_is_better: Direction of improvement.
        inflated: Whether the figure, which is never negative, grows with every bit of noise, as sums of
            distances do, and so is larger in a resample than in the rows themselves.
    """

    name: str
    score: Callable[[Mapping[str, NDArray[Any]], NDArray[np.intp]], NDArray[np.float64]]
    higher_is_better: bool = True
    inflated: bool = False


@dataclass(frozen=True)
class Section:
    """A task's own part of the evaluation report: a heading, words, a table, pictures.

    Attributes:
        figures: Pictures, by the name of their PNG file.
        plots: Data for `dvc plots`, by the name of their CSV file; not shown in the report.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    plots: Mapping[str, pd.DataFrame] = field(default_factory=dict)
