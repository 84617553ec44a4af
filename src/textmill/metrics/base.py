"""The types of metrics and of report sections."""

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
"""A model's raw outputs by name, one row an example: float32 numbers (`logits`, say) or generated texts."""

Columns = Mapping[str, "NDArray[Any]"]
"""The columns of a table of predictions, each an array of shape (n,)."""

Score = Callable[[Columns, "NDArray[np.intp]"], "NDArray[np.float64]"]
"""From columns and row indices of shape (resamples, n) to a value of each resample, shape (resamples,)."""


def mean_of(column: str) -> Score:
    """Return the score that is a column's mean."""
    return lambda columns, index: columns[column][index].mean(axis=1)


@dataclass(frozen=True)
class Metric:
    """A metric of a table of predictions that can be resampled quickly.

    Attributes:
        name: Name in logs, such as `weighted_f1`.
        score: Computes the metric of every resample.
        higher_is_better: Direction of improvement.
        inflated: Whether noise can only increase the metric, as it does a sum of distances, so that a
            resample has a larger value than the rows themselves. Such a metric is never negative.
    """

    name: str
    score: Score
    higher_is_better: bool = True
    inflated: bool = False


@dataclass(frozen=True)
class Section:
    """A task's own section of the evaluation report.

    Attributes:
        title: Heading.
        text: Paragraph under the heading.
        table: Table under the text, or None.
        figures: Plots of the report, by the name of their PNG file.
        plots: Data for `dvc plots`, by the name of their CSV file; not in the report.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    plots: Mapping[str, pd.DataFrame] = field(default_factory=dict)
