"""The gate: from what was measured to a verdict with reasons, without registry or files.

Every check fails closed: what is missing, unequal or no finite number fails, and is never skipped.
A check that the data cannot decide is inconclusive. One failure makes the verdict fail, else one
undecided check makes it inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from textmill.config.sections.gate import BudgetConfig, GateConfig
from textmill.errors import UserError
from textmill.evaluation.measurements import GROUP
from textmill.evaluation.slices import LENGTH, Slice, cut_slices
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, intervals, paired_test
from textmill.metrics.holm import holm

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["pass", "fail", "inconclusive"]

_UNITS = {"latency": "ms for one row (95th percentile)", "memory": "MB of memory", "size": "MB on disk"}


@dataclass(frozen=True)
class Costs:
    """What a version costs: ms for one row (95th percentile), MB of memory, MB of the graph."""

    latency: float
    memory: float
    size: float


@dataclass(frozen=True)
class MeasuredVersion:
    """One version on the evaluation set.

    Attributes:
        name: In words, for the reasons: `version 3`.
        digest: SHA-256 of the evaluation set that the version was made beside, by its tag.
        predictions: The task's own table, one row a row of the set.
        costs: As measured beside the other version.
    """

    name: str
    digest: str | None
    predictions: pd.DataFrame
    costs: Costs


@dataclass(frozen=True)
class GateInputs:
    """What the gate checks.

    Attributes:
        metrics: The task's figures.
        main_metric: Name of the one that decides where the configuration names none.
        target_columns: Columns that must hold the same for both versions.
        challenger: Who wants to become champion.
        champion: Who is it now; None for the first.
        digest: SHA-256 of the evaluation set at hand.
        frame: `length` and the slice columns of its rows, in the order of the challenger's predictions.
        overlap: Rows of the set whose normalised text the challenger's training split holds; None
            when that split is not at hand.
    """

    metrics: Sequence[Metric]
    main_metric: str
    target_columns: Sequence[str]
    challenger: MeasuredVersion
    champion: MeasuredVersion | None
    digest: str
    frame: pd.DataFrame
    overlap: int | None


@dataclass(frozen=True)
class Check:
    """One question of the gate, how it was answered, and why, in words and in numbers."""

    name: str
    status: Status
    words: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """All checks, and what follows from them."""

    checks: Sequence[Check]

    @property
    def status(self) -> Status:
        """Fail before inconclusive before pass; without a check it is a fail."""
        found = {check.status for check in self.checks}
        return "fail" if "fail" in found or not found else "inconclusive" if "inconclusive" in found else "pass"

    @property
    def reasons(self) -> list[str]:
        """Why it did not pass; for a pass, what was shown."""
        against = [check.words for check in self.checks if check.status == self.status]
        return against or ["nothing was checked"]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"verdict": self.status, "reasons": self.reasons, "checks": [asdict(check) for check in self.checks]}


def judge(inputs: GateInputs, config: GateConfig) -> Verdict:
    """Put every question of the gate. The first champion is asked for floors, overlap and limits only."""
    digests = list(_digests(inputs))
    if any(check.status == "fail" for check in digests):
        return Verdict(digests)  # figures of another set would say nothing
    bootstrap = Bootstrap(config.resamples, config.confidence, config.seed)
    checks = [*digests, _overlap(inputs, config.max_overlap)]
    checks += _closed("floors", lambda: _floors(inputs, config, bootstrap))
    if inputs.champion is not None:
        champion = inputs.champion
        checks += _closed("difference", lambda: _difference(inputs, champion, config, bootstrap))
        checks += _closed("slices", lambda: _slices(inputs, champion, config, bootstrap))
    for name, budget in (
        ("latency", config.budgets.latency),
        ("memory", config.budgets.memory),
        ("size", config.budgets.size),
    ):
        checks += _budget(inputs, name, budget)
    return Verdict(checks)


def _closed(name: str, questions: Callable[[], Iterator[Check]]) -> list[Check]:
    """The answers; a failure for what cannot be computed."""
    try:
        return list(questions())
    except UserError as error:
        return [Check(name, "fail", f"{name}: {error.what}")]
    except (KeyError, ValueError) as error:  # of a metric that meets labels or columns it does not know
        return [Check(name, "fail", f"{name}: the predictions cannot be measured ({error!r})")]


def _digests(inputs: GateInputs) -> Iterator[Check]:
    for side in filter(None, (inputs.challenger, inputs.champion)):
        same = side.digest is not None and side.digest == inputs.digest
        words = (
            f"{side.name} was made beside this evaluation set ({inputs.digest[:12]})"
            if same
            else f"{side.name} was made beside another evaluation set "
            f"({(side.digest or 'unknown')[:12]} instead of {inputs.digest[:12]})"
        )
        yield Check("digest", "pass" if same else "fail", words)


def _overlap(inputs: GateInputs, most: float) -> Check:
    rows = len(inputs.challenger.predictions)
    if inputs.overlap is None:
        return Check("overlap", "fail", f"the training rows of {inputs.challenger.name} are not here to compare with")
    share = inputs.overlap / rows if rows else math.nan
    words = f"{inputs.overlap} of {rows} evaluation rows stand in the training split too, {most:.2%} are allowed"
    return Check("overlap", "pass" if share <= most else "fail", words, {"rows": inputs.overlap, "share": share})


def _floors(inputs: GateInputs, config: GateConfig, bootstrap: Bootstrap) -> Iterator[Check]:
    known = {metric.name: metric for metric in inputs.metrics}
    found = intervals(inputs.challenger.predictions, inputs.metrics, bootstrap)
    for name, floor in config.floors.items():
        if name not in known:
            yield Check("floor", "fail", f"{name} has a floor and is no metric of this task")
            continue
        value, up = found[name].value, known[name].higher_is_better
        held = value >= floor if up else value <= floor
        words = f"{name} is {value:.4f}, {'at least' if up else 'at most'} {floor:g} is asked"
        yield Check(
            "floor", "pass" if held else "fail", words, {"metric": name, "floor": floor, **found[name].as_dict()}
        )
    if not config.floors:
        words = f"gate.floors asks nothing; {inputs.main_metric} is {found[inputs.main_metric].value:.4f}"
        yield Check("floor", "pass", words, {"metric": inputs.main_metric, **found[inputs.main_metric].as_dict()})


def _difference(
    inputs: GateInputs, champion: MeasuredVersion, config: GateConfig, bootstrap: Bootstrap
) -> Iterator[Check]:
    asked = config.difference
    metric = _metric(inputs, asked.metric)
    theirs = champion.predictions
    found = paired_test(inputs.challenger.predictions, theirs, metric, 0.0, bootstrap, inputs.target_columns)
    gain = found.gain
    superior = asked.claim == "superiority"
    bound = asked.margin if superior else -asked.margin
    status: Status = "pass" if gain.low > bound else "fail" if gain.high <= bound else "inconclusive"
    if superior:
        said = {"pass": "is", "fail": "is not", "inconclusive": "may or may not be"}[status]
        said += f" better by more than {asked.margin:g}"
    else:
        said = {"pass": "is not", "fail": "is", "inconclusive": "may be"}[
            status
        ] + f" worse by {asked.margin:g} or more"
    words = (
        f"{inputs.challenger.name} {said} in {metric.name}: gain {gain.value:+.4f} "
        f"({config.confidence:.0%} interval {gain.low:+.4f} to {gain.high:+.4f})"
    )
    figures = {"metric": metric.name, "claim": asked.claim, "margin": asked.margin, **gain.as_dict()}
    yield Check("difference", status, words, figures)


def _slices(inputs: GateInputs, champion: MeasuredVersion, config: GateConfig, bootstrap: Bootstrap) -> Iterator[Check]:
    asked = config.slices
    parts = _cut(inputs.frame, asked.columns)
    large = [part for part in parts if len(part.rows) >= asked.min_rows]
    yield from _required(inputs.frame, asked.required, asked.min_rows)
    metric = _metric(inputs, config.difference.metric)
    ours, theirs = inputs.challenger.predictions, champion.predictions
    tests = []
    for part in large:
        rows = ours.iloc[part.rows]
        same = theirs[theirs["id"].isin(rows["id"])]
        tests.append(paired_test(rows, same, metric, asked.margin, bootstrap, inputs.target_columns))
    for part, test, p in zip(large, tests, holm([test.harm for test in tests]), strict=True):
        harmed = p < asked.significance
        said = f"loses more than {asked.margin:g}" if harmed else f"shows no loss beyond {asked.margin:g}"
        words = (
            f"slice {part.column} {part.name} ({len(part.rows)} rows) {said} in {metric.name}: "
            f"gain {test.gain.value:+.4f}, adjusted p {p:.3f}"
        )
        figures = {"column": part.column, "slice": part.name, "rows": len(part.rows), "metric": metric.name}
        yield Check("slice", "fail" if harmed else "pass", words, {**figures, **test.gain.as_dict(), "p": p})
    small = len(parts) - len(large)
    if small or not parts:
        words = f"{small} slices of fewer than {asked.min_rows} rows were not tested"
        yield Check("slice", "pass", words, {"small": small})


def _cut(frame: pd.DataFrame, columns: Sequence[str]) -> list[Slice]:
    for column in columns:
        if column not in frame:
            fix = f"Choose among {', '.join(map(str, frame.columns))}"
            raise UserError(f"the evaluation set has no column {column!r}", where="gate.slices.columns", fix=fix)
        if frame[column].isna().all():
            raise UserError(f"the slices by {column!r} are empty: no row has a value there")
    if LENGTH not in frame or not len(frame):
        raise UserError("the evaluation set has no rows to cut")
    return cut_slices(frame, columns, 1)


def _required(frame: pd.DataFrame, required: Mapping[str, Sequence[str]], least: int) -> Iterator[Check]:
    for column, names in required.items():
        found = frame[column].astype(str)
        for name in names:
            rows = int((found == name).sum())
            if rows < least:
                state = "is empty" if rows == 0 else f"has {rows} rows, {least} are asked"
                words = f"the required slice {column} {name} {state}"
                yield Check("slice", "fail", words, {"column": column, "slice": name, "rows": rows})


def _budget(inputs: GateInputs, name: str, budget: BudgetConfig) -> Iterator[Check]:
    ours: float = getattr(inputs.challenger.costs, name)
    theirs: float | None = getattr(inputs.champion.costs, name) if inputs.champion else None
    bounds = []
    if budget.limit is not None:
        bounds.append((budget.limit, f"the limit is {budget.limit:g}"))
    if budget.ratio is not None and theirs is not None:
        bounds.append((budget.ratio * theirs, f"{budget.ratio:g} times the champion's {theirs:.2f} is allowed"))
    for bound, allowed in bounds:
        held = math.isfinite(ours) and math.isfinite(bound) and 0 < ours <= bound
        words = f"{name}: {ours:.2f} {_UNITS[name]}, {allowed}"
        yield Check(name, "pass" if held else "fail", words, {"value": ours, "bound": bound, "champion": theirs})


def _metric(inputs: GateInputs, name: str | None) -> Metric:
    wanted = name or inputs.main_metric
    found = next((metric for metric in inputs.metrics if metric.name == wanted), None)
    if found is None:
        known = ", ".join(metric.name for metric in inputs.metrics if GROUP not in metric.name)
        raise UserError(
            f"{wanted!r} is no metric of this task", where="gate.difference.metric", fix=f"Allowed: {known}"
        )
    return found
