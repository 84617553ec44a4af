"""All figures of one evaluation: of the model, its baselines, their differences, and of slices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textmill.evaluation.slices import Slice
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, Interval, intervals, paired_differences
from textmill.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

GROUP = "/"
"""In a metric's name it stands between figure and group: `f1/positive`."""

_FORBIDDEN = re.compile(r"[^\w\-. /:]")
"""What the tracking store does not take in a metric's name."""

Intervals = dict[str, Interval]


@dataclass(frozen=True)
class SliceMeasurement:
    """The main metric over a slice of `rows` rows."""

    column: str
    name: str
    rows: int
    interval: Interval


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    Attributes:
        main: Name of the metric that decides.
        test: Every metric of the model.
        baselines: The same of each baseline.
        difference: Model minus each baseline, on paired draws.
        slices: The main metric over parts of the split.
        higher_is_better: Of each metric.
    """

    main: str
    test: Intervals
    baselines: dict[str, Intervals]
    difference: dict[str, Intervals]
    slices: list[SliceMeasurement]
    higher_is_better: dict[str, bool]

    @property
    def headline(self) -> list[str]:
        """The metrics over all rows, without those of a single group."""
        return [name for name in self.test if GROUP not in name]

    def summary(self) -> dict[str, Any]:
        """What `dvc metrics show` lists: headline figures, and the main one's lead over the baselines.

        The intervals of the baselines' lesser figures are left to `details`, to keep the list short.
        """
        return {
            "test": {name: self.test[name].as_dict() for name in self.headline},
            "baselines": {
                baseline: {
                    name: found[name].as_dict() if name == self.main else {"value": round(found[name].value, 6)}
                    for name in self.headline
                }
                for baseline, found in self.baselines.items()
            },
            "difference": {
                baseline: {self.main: found[self.main].as_dict()} for baseline, found in self.difference.items()
            },
        }

    def details(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""

        def plain(found: Intervals) -> dict[str, dict[str, float]]:
            return {name: interval.as_dict() for name, interval in found.items()}

        return {
            "test": plain(self.test),
            "baselines": {name: plain(found) for name, found in self.baselines.items()},
            "difference": {name: plain(found) for name, found in self.difference.items()},
            "slices": [
                {"column": part.column, "slice": part.name, "rows": part.rows, self.main: part.interval.as_dict()}
                for part in self.slices
            ],
        }

    def flat(self) -> dict[str, float]:
        """Names and values as the tracking store takes them: `test/weighted_f1_low` and the like.

        Intervals only of the headline figures and their lead; the others are in `details`, for there
        they would bury the rest in a hundred columns.
        """
        named = {f"test/{name}": interval for name, interval in self.test.items()}
        for kind, sections in (("baseline", self.baselines), ("difference", self.difference)):
            named |= {f"{kind}/{of}/{name}": found[name] for of, found in sections.items() for name in self.headline}
        values = {name: interval.value for name, interval in named.items()}
        with_ends = [f"test/{name}" for name in self.headline]
        with_ends += [f"difference/{of}/{self.main}" for of in self.difference]
        for name in with_ends:
            values |= {f"{name}_low": named[name].low, f"{name}_high": named[name].high}
        return {_FORBIDDEN.sub("_", name): value for name, value in values.items()}


def measure(
    task: Task,
    metrics: Sequence[Metric],
    predictions: pd.DataFrame,
    baselines: Mapping[str, pd.DataFrame],
    slices: Sequence[Slice],
    bootstrap: Bootstrap,
) -> Measurements:
    """Measure a model's predictions beside those of its baselines on the same rows.

    Raises:
        UserError: A value or a figure is no finite number, or the rows do not match.
    """
    main = [metric for metric in metrics if metric.name == task.main_metric]
    headline = [metric for metric in metrics if GROUP not in metric.name]
    return Measurements(
        main=task.main_metric,
        test=intervals(predictions, metrics, bootstrap),
        baselines={name: intervals(table, headline, bootstrap) for name, table in baselines.items()},
        difference={
            name: paired_differences(predictions, table, headline, bootstrap, task.target_columns)
            for name, table in baselines.items()
        },
        slices=[
            SliceMeasurement(
                part.column,
                part.name,
                len(part.rows),
                intervals(predictions.iloc[part.rows], main, bootstrap)[task.main_metric],
            )
            for part in slices
        ],
        higher_is_better={metric.name: metric.higher_is_better for metric in metrics},
    )
