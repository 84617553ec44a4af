"""The promotion gate: from measurements to a verdict with reasons, without registry or files.

Every check fails closed: a missing, unequal or non-finite value fails the check and never skips it.
A check that the data cannot decide is inconclusive. The verdict is the worst result: fail, then
inconclusive, then pass.
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
    """Costs of a version: latency of one row (95th percentile, ms), memory (MB), size of the graph (MB)."""

    latency: float
    memory: float
    size: float


@dataclass(frozen=True)
class MeasuredVersion:
    """One version, measured on the evaluation set.

    Attributes:
        name: Name in reasons, such as `version 3`.
        digest: SHA-256 of the evaluation set that the version was built with, from its tag.
        predictions: Predictions of the task's evaluator, one row per evaluation row.
        costs: Costs, measured in the same session as the other version's.
    """

    name: str
    digest: str | None
    predictions: pd.DataFrame
    costs: Costs


@dataclass(frozen=True)
class GateInputs:
    """What the gate checks.

    Attributes:
        main_metric: Metric to compare if the configuration names none.
        target_columns: Columns that must be equal for both versions.
        champion: None before the first promotion.
        digest: SHA-256 of the current evaluation set.
        frame: `length` and slice columns of the set, in the order of the challenger's predictions.
        overlap: Evaluation rows whose normalised text is also in the challenger's training split;
            None if that split is not available.
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
    """One check of the gate: its status, the reason as text, and the numbers behind it."""

    name: str
    status: Status
    words: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """All checks and their combined status."""

    checks: Sequence[Check]

    @property
    def status(self) -> Status:
        """The worst status of all checks; `fail` without a check."""
        order: tuple[Status, ...] = ("fail", "inconclusive", "pass")
        return min((check.status for check in self.checks), key=order.index, default="fail")

    @property
    def reasons(self) -> list[str]:
        """The texts of the checks that decided the status."""
        return [check.words for check in self.checks if check.status == self.status] or ["nothing was checked"]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"verdict": self.status, "reasons": self.reasons, "checks": [asdict(check) for check in self.checks]}


def judge(inputs: GateInputs, config: GateConfig) -> Verdict:
    """Run all gate checks. Without a champion: digest, floors, overlap and absolute limits only."""
    digests = list(_digests(inputs))
    if any(check.status == "fail" for check in digests):
        return Verdict(digests)  # metrics of different evaluation sets cannot be compared
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


def _closed(name: str, checks: Callable[[], Iterator[Check]]) -> list[Check]:
    """Run checks; return one failed check if they raise an error."""
    try:
        return list(checks())
    except UserError as error:
        return [Check(name, "fail", f"{name}: {error.what}")]
    except (KeyError, ValueError) as error:  # raised by a metric for unknown labels or columns
        return [Check(name, "fail", f"{name}: the predictions cannot be measured ({error!r})")]


def _digests(inputs: GateInputs) -> Iterator[Check]:
    for side in filter(None, (inputs.challenger, inputs.champion)):
        same = side.digest is not None and side.digest == inputs.digest
        words = (
            f"{side.name} was built with this evaluation set ({inputs.digest[:12]})"
            if same
            else f"{side.name} was built with another evaluation set "
            f"({(side.digest or 'unknown')[:12]} instead of {inputs.digest[:12]})"
        )
        yield Check("digest", "pass" if same else "fail", words)


def _overlap(inputs: GateInputs, most: float) -> Check:
    rows = len(inputs.challenger.predictions)
    if inputs.overlap is None:
        return Check("overlap", "fail", f"the training rows of {inputs.challenger.name} are not available")
    share = inputs.overlap / rows if rows else math.nan
    words = f"{inputs.overlap} of {rows} evaluation rows are also in the training split, {most:.2%} allowed"
    return Check("overlap", "pass" if share <= most else "fail", words, {"rows": inputs.overlap, "share": share})


def _floors(inputs: GateInputs, config: GateConfig, bootstrap: Bootstrap) -> Iterator[Check]:
    known = {metric.name: metric for metric in inputs.metrics}
    measured = intervals(inputs.challenger.predictions, inputs.metrics, bootstrap)
    for name, floor in config.floors.items():
        if name not in known:
            yield Check("floor", "fail", f"{name} has a floor but is not a metric of this task")
            continue
        value, up = measured[name].value, known[name].higher_is_better
        status: Status = "pass" if (value >= floor if up else value <= floor) else "fail"
        words = f"{name} is {value:.4f}, {'at least' if up else 'at most'} {floor:g} is required"
        yield Check("floor", status, words, {"metric": name, "floor": floor, **measured[name].as_dict()})
    if not config.floors:
        main = measured[inputs.main_metric]
        words = f"gate.floors is empty; {inputs.main_metric} is {main.value:.4f}"
        yield Check("floor", "pass", words, {"metric": inputs.main_metric, **main.as_dict()})


def _difference(
    inputs: GateInputs, champion: MeasuredVersion, config: GateConfig, bootstrap: Bootstrap
) -> Iterator[Check]:
    options = config.difference
    metric = _metric(inputs, options.metric)
    ours, theirs = inputs.challenger.predictions, champion.predictions
    gain = paired_test(ours, theirs, metric, 0.0, bootstrap, inputs.target_columns).gain
    superior = options.claim == "superiority"
    bound = options.margin if superior else -options.margin
    status: Status = "pass" if gain.low > bound else "fail" if gain.high <= bound else "inconclusive"
    if superior:
        verb = {"pass": "is", "fail": "is not", "inconclusive": "may or may not be"}[status]
        claim = f"{verb} better by more than {options.margin:g}"
    else:
        verb = {"pass": "is not", "fail": "is", "inconclusive": "may be"}[status]
        claim = f"{verb} worse by {options.margin:g} or more"
    words = (
        f"{inputs.challenger.name} {claim} in {metric.name}: gain {gain.value:+.4f} "
        f"({config.confidence:.0%} interval {gain.low:+.4f} to {gain.high:+.4f})"
    )
    figures = {"metric": metric.name, "claim": options.claim, "margin": options.margin, **gain.as_dict()}
    yield Check("difference", status, words, figures)


def _slices(inputs: GateInputs, champion: MeasuredVersion, config: GateConfig, bootstrap: Bootstrap) -> Iterator[Check]:
    options = config.slices
    parts = _cut(inputs.frame, options.columns)
    large = [part for part in parts if len(part.rows) >= options.min_rows]
    yield from _required(inputs.frame, options.required, options.min_rows)
    metric = _metric(inputs, config.difference.metric)
    ours, theirs = inputs.challenger.predictions, champion.predictions
    tests = []
    for part in large:
        rows = ours.iloc[part.rows]
        same = theirs[theirs["id"].isin(rows["id"])]
        tests.append(paired_test(rows, same, metric, options.margin, bootstrap, inputs.target_columns))
    for part, test, p in zip(large, tests, holm([test.harm for test in tests]), strict=True):
        harmed = p < options.significance
        result = f"loses more than {options.margin:g}" if harmed else f"shows no loss beyond {options.margin:g}"
        words = (
            f"slice {part.column} {part.name} ({len(part.rows)} rows) {result} in {metric.name}: "
            f"gain {test.gain.value:+.4f}, adjusted p {p:.3f}"
        )
        figures = {"column": part.column, "slice": part.name, "rows": len(part.rows), "metric": metric.name}
        yield Check("slice", "fail" if harmed else "pass", words, {**figures, **test.gain.as_dict(), "p": p})
    small = len(parts) - len(large)
    if small or not parts:
        words = f"{small} slices of fewer than {options.min_rows} rows were not tested"
        yield Check("slice", "pass", words, {"small": small})


def _cut(frame: pd.DataFrame, columns: Sequence[str]) -> list[Slice]:
    for column in columns:
        if column not in frame:
            fix = f"Choose among {', '.join(map(str, frame.columns))}"
            raise UserError(f"the evaluation set has no column {column!r}", where="gate.slices.columns", fix=fix)
        if frame[column].isna().all():
            raise UserError(f"column {column!r} of the evaluation set is empty", where="gate.slices.columns")
    if LENGTH not in frame or not len(frame):
        raise UserError("the evaluation set has no rows with a length")
    return cut_slices(frame, columns, 1)


def _required(frame: pd.DataFrame, required: Mapping[str, Sequence[str]], least: int) -> Iterator[Check]:
    for column, names in required.items():
        values = frame[column].astype(str)
        for name in names:
            rows = int((values == name).sum())
            if rows < least:
                state = "is empty" if rows == 0 else f"has {rows} rows, {least} are required"
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
        within = math.isfinite(ours) and math.isfinite(bound) and 0 < ours <= bound
        words = f"{name}: {ours:.2f} {_UNITS[name]}, {allowed}"
        yield Check(name, "pass" if within else "fail", words, {"value": ours, "bound": bound, "champion": theirs})


def _metric(inputs: GateInputs, name: str | None) -> Metric:
    wanted = name or inputs.main_metric
    for metric in inputs.metrics:
        if metric.name == wanted:
            return metric
    known = ", ".join(metric.name for metric in inputs.metrics if GROUP not in metric.name)
    raise UserError(
        f"{wanted!r} is not a metric of this task", where="gate.difference.metric", fix=f"Choose among {known}"
    )
