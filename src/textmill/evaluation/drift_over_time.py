"""Measure drift of captured requests period by period, with at most 5 % false alarms in a year.

Each look tests at 5 % divided by the looks of a year, and Holm's procedure shares that among the
measures. The union bound then holds for any dependence between looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from textmill.data.cleaning import Cleaner
from textmill.errors import UserError
from textmill.evaluation.drift import MIN_ROWS, Drift, measure_drift
from textmill.evaluation.reference import Reference
from textmill.fetching.sources.captured import captured_rows

if TYPE_CHECKING:
    import pandas as pd

    from textmill.config.sections.prepare import CleaningConfig
    from textmill.metrics.base import Outputs
    from textmill.tasks.base import Task

By = Literal["hour", "day", "week"]

LOOKS: dict[By, int] = {"hour": 8784, "day": 366, "week": 53}
"""Looks in a year; each spends an equal part of `YEARLY_ALPHA`."""
YEARLY_ALPHA = 0.05
WINDOW = 200
"""A period of fewer rows is judged together with the rows before it, up to this number."""


@dataclass(frozen=True)
class Look:
    """Drift at the end of one period.

    Attributes:
        start: Start of the period, UTC.
        requests: Rows of the period; `drift.rows` also counts earlier ones in the window.
    """

    start: datetime
    requests: int
    drift: Drift


def period_start(time: datetime, by: By) -> datetime:
    """Return the start of the UTC hour, day or week (from Monday) that contains a time."""
    hour = time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if by == "hour":
        return hour
    day = hour.replace(hour=0)
    return day if by == "day" else day - timedelta(days=day.weekday())


def read_captured(
    folder: Path, task: Task, cleaning: CleaningConfig, by: By, most: int, now: datetime
) -> tuple[list[datetime], pd.DataFrame, int]:
    """Read the inputs of all complete periods, ordered by time.

    Returns:
        Times, cleaned text columns, and the number of rows without a usable text. A period of more
        than `most` rows is sampled at random.

    Raises:
        UserError: The folder has no captured input, none of this task, or no complete period.
    """
    rows = captured_rows(folder / "requests")
    if not rows:
        raise UserError("no captured requests", where=str(folder), fix="Start `textmill serve --capture` with it")
    names = task.text_columns
    if not any(row.get(name) is not None for row in rows for name in names):
        raise UserError(f"no column {names[0]!r}", where=str(folder), fix="Give the --reference that answered them")
    # The language filter selects training data; new texts in any language count as drift
    clean = Cleaner(cleaning.model_copy(update={"languages": None})).clean
    rows = [row for row in rows if period_start(row["time"], by) < period_start(now, by)]
    if not rows:
        raise UserError(f"no complete {by} yet", where=str(folder), fix=f"Wait until the {by} ends (UTC)")
    periods: dict[datetime, list[dict[str, Any]]] = {}
    skipped = 0
    for row in sorted(rows, key=lambda row: (row["time"], row["request"], row["position"])):
        texts = {name: clean(row.get(name) or "") for name in names}
        if all(text.strip() for text in texts.values()):
            periods.setdefault(period_start(row["time"], by), []).append({"time": row["time"], **texts})
        else:
            skipped += 1
    if not periods:
        raise UserError("no captured request has a text", where=str(folder), fix="Check the clients of the server")
    chooser = np.random.default_rng(0)
    kept = []
    for period in periods.values():
        chosen = np.sort(chooser.permutation(len(period))[:most])
        kept += [period[place] for place in chosen]
    return (
        [row["time"] for row in kept],
        task.parse_inputs([{name: row[name] for name in names} for row in kept]),
        skipped,
    )


def measure_over_time(
    reference: Reference,
    times: Sequence[datetime],
    frame: pd.DataFrame,
    outputs: Outputs,
    answers: Sequence[Mapping[str, Any]],
    by: By,
) -> list[Look]:
    """Compare each period with a reference, at `YEARLY_ALPHA` over all looks of a year.

    Args:
        reference: Statistics of the model's training data.
        times: Time of each row, ascending.
        frame: Cleaned text columns, one row for each time.
        outputs: Raw outputs of the model for the rows; empty if the reference has none.
        answers: Natural answers of the model; empty if the reference has no outputs.
        by: Length of a period.
    """
    starts = [period_start(time, by) for time in times]
    looks = []
    for start in dict.fromkeys(starts):
        first = starts.index(start)
        end = first + starts.count(start)
        rows = slice(max(0, min(first, end - WINDOW)), end)
        window = {name: values[rows] for name, values in outputs.items()}
        drift = measure_drift(reference, frame.iloc[rows], {}, window, answers[rows], alpha=YEARLY_ALPHA / LOOKS[by])
        looks.append(Look(start, end - first, drift))
    return looks


def write_gauges(looks: Sequence[Look], reference: str, path: Path) -> None:
    """Write the newest look as Prometheus gauges, for the textfile collector of node-exporter."""
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry, newest = CollectorRegistry(), looks[-1]
    of_version, of_measure = ["reference"], ["reference", "subject", "measure"]
    for name, words, value in (
        ("rows", "Rows of the newest look", newest.drift.rows),
        ("period_start_seconds", "Start of the newest period, Unix time", newest.start.timestamp()),
        ("alarm", "1 if the newest look found drift", newest.drift.verdict == "drift"),
        ("judged", f"1 if the newest look had {MIN_ROWS} rows", newest.drift.verdict != "too few rows"),
    ):
        Gauge(f"textmill_drift_{name}", words, of_version, registry=registry).labels(reference).set(value)
    effect = Gauge("textmill_drift_effect", "Effect of a measure", of_measure, registry=registry)
    limit = Gauge("textmill_drift_limit", "Smallest effect that is drift", of_measure, registry=registry)
    flagged = Gauge("textmill_drift_flagged", "1 if the measure found drift", of_measure, registry=registry)
    for measure in newest.drift.measures:
        labels = (reference, measure.subject, measure.name)
        effect.labels(*labels).set(measure.effect)
        limit.labels(*labels).set(measure.limit)
        flagged.labels(*labels).set(measure.flagged)
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where=str(path), fix="Give another --gauges"
        ) from error
