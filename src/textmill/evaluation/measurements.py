"""The metrics of one evaluation: model, baselines, differences and slices."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
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
"""Separates metric and group in a name: `f1/positive`."""

_FORBIDDEN = re.compile(r"[^\w\-. /:]")
"""Characters that MLflow forbids in a metric's name."""

Intervals = dict[str, Interval]


_SPELLING = {"f1": "F1", "tfidf": "TF-IDF"}


def words(name: str) -> str:
    """Convert an identifier to words in their usual spelling."""
    return " ".join(_SPELLING.get(word, word) for word in name.split("_"))


@dataclass(frozen=True)
class SliceMeasurement:
    """The main metric over a slice of `rows` rows."""

    column: str
    name: str
    rows: int
    interval: Interval


@dataclass(frozen=True)
class Measurements:
    """All metrics of an evaluation, with intervals.

    Attributes:
        main: Name of the main metric.
        test: Metrics of the model on the test split.
        difference: Model minus each baseline, on paired resamples.
    """

    main: str
    test: Intervals
    baselines: dict[str, Intervals]
    difference: dict[str, Intervals]
    slices: list[SliceMeasurement]
    higher_is_better: dict[str, bool]

    @property
    def headline(self) -> list[str]:
        """Names of the metrics over all rows, without those of a single group."""
        return [name for name in self.test if GROUP not in name]

    def summary(self) -> dict[str, Any]:
        """Return the content of `metrics.json`: headline metrics, and the main one's lead over baselines.

        Only `details` has the intervals of the baselines' other metrics.
        """
        return {
            "test": {name: self.test[name].as_dict() for name in self.headline},
            "baselines": {
                baseline: {
                    name: metrics[name].as_dict() if name == self.main else {"value": round(metrics[name].value, 6)}
                    for name in self.headline
                }
                for baseline, metrics in self.baselines.items()
            },
            "difference": {
                baseline: {self.main: metrics[self.main].as_dict()} for baseline, metrics in self.difference.items()
            },
        }

    def decision(self) -> dict[str, float]:
        """Return the content of `decision.json`, which `dvc metrics show` prints: what decides on a model.

        That is the main metric with its interval, and its lead over the strongest baseline, positive where better.
        """
        values = {self.main: self.test[self.main]}
        if (strongest := self.strongest_baseline) is not None:
            lead = self.difference[strongest][self.main]
            values["lead_over_baseline"] = lead.as_gain(higher_is_better=self.higher_is_better[self.main])
        return {
            f"{name}{ending}": round(number, 4)
            for name, interval in values.items()
            for ending, number in (("", interval.value), ("_low", interval.low), ("_high", interval.high))
        }

    @property
    def strongest_baseline(self) -> str | None:
        """Name of the baseline with the best main metric, or None without baselines."""
        sign = 1 if self.higher_is_better[self.main] else -1
        return max(self.baselines, key=lambda name: sign * self.baselines[name][self.main].value, default=None)

    def details(self) -> dict[str, Any]:
        """Return the content of `figures.json`: every metric with its interval."""

        def plain(metrics: Intervals) -> dict[str, dict[str, float]]:
            return {name: interval.as_dict() for name, interval in metrics.items()}

        return {
            "test": plain(self.test),
            "baselines": {name: plain(metrics) for name, metrics in self.baselines.items()},
            "difference": {name: plain(metrics) for name, metrics in self.difference.items()},
            "slices": [
                {"column": part.column, "slice": part.name, "rows": part.rows, self.main: part.interval.as_dict()}
                for part in self.slices
            ],
        }

    def flat(self) -> dict[str, float]:
        """Return names and values for MLflow, such as `test/weighted_f1_low`.

        Intervals are included only for headline metrics and the main one's lead: all of them would
        fill a hundred columns.
        """
        named = {f"test/{name}": interval for name, interval in self.test.items()}
        for kind, sections in (("baseline", self.baselines), ("difference", self.difference)):
            named |= {f"{kind}/{of}/{name}": values[name] for of, values in sections.items() for name in self.headline}
        flat = {name: interval.value for name, interval in named.items()}
        for name in (
            *(f"test/{name}" for name in self.headline),
            *(f"difference/{of}/{self.main}" for of in self.difference),
        ):
            flat |= {f"{name}_low": named[name].low, f"{name}_high": named[name].high}
        names = mlflow_names(list(flat))
        return {names[name]: value for name, value in flat.items()}


def mlflow_names(names: Sequence[str]) -> dict[str, str]:
    """Return names that MLflow takes: other signs become `_`, or their Unicode names where that tells names apart."""
    plain = {name: _FORBIDDEN.sub("_", name) for name in names}
    counts = Counter(plain.values())
    result: dict[str, str] = {}
    for name, short in plain.items():
        if counts[short] > 1 or not re.search(r"[^\W_]", short.rpartition(GROUP)[2]):
            spelled = _FORBIDDEN.sub(lambda sign: f" {unicodedata.name(sign[0], hex(ord(sign[0]))).lower()} ", name)
            short = re.sub(r" *([/ ]) *", r"\1", spelled.strip()).strip()
            short = _FORBIDDEN.sub("_", short)
        while short in result.values():
            short += "_"
        result[name] = short
    return result


def measure(
    task: Task,
    metrics: Sequence[Metric],
    predictions: pd.DataFrame,
    baselines: Mapping[str, pd.DataFrame],
    slices: Sequence[Slice],
    bootstrap: Bootstrap,
) -> Measurements:
    """Measure the predictions of a model and its baselines on the same rows.

    Raises:
        UserError: A value or metric is not a finite number, or the rows do not match.
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
