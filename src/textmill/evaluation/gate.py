"""The promotion gate: from measurements to a verdict with reasons, without registry or files.

Every check fails closed: a missing, unequal or non-finite value fails the check and never skips it.
A check that the data cannot decide is inconclusive. The verdict is the worst result: fail, then
inconclusive, then pass. A slice that cannot be decided is reported and, unless configured, not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from textmill.config.sections.gate import BudgetConfig, GateConfig, SlicesConfig
from textmill.errors import UserError
from textmill.evaluation.measurements import GROUP
from textmill.evaluation.slices import LENGTH, Slice, cut_slices, pool_small, value_names
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, checked_pair, intervals, paired_gain
from textmill.metrics.categories import never_predicted
from textmill.metrics.swaps import PartTest, joint_tests

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["pass", "fail", "inconclusive", "undecided"]
"""`undecided`: the data cannot decide, and the configuration does not require that they do."""

_UNITS = {"latency": "ms for one row (95th percentile)", "memory": "MB of memory", "size": "MB on disk"}


@dataclass(frozen=True)
class Costs:
    """Costs of a version: latency of one row (95th percentile, ms), memory (MB), size of the graph (MB).

    `precision` names the number format of the graph that was measured.
    """

    latency: float
    memory: float
    size: float
    precision: str = ""


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
        anchor: Best version proven so far, if it is not the champion: losses against it add up over promotions.
        look: How many comparisons were made on this evaluation set, with this one.
        digest: SHA-256 of the current evaluation set.
        frame: `length` and slice columns of the set, in the order of the challenger's predictions.
        unseen: If the versions were made with different test splits: the rows of each split that is at hand
            which none of them has seen, the challenger's first.
        sketch: Result of `data.seen.row_sketch` for the rows.
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
    anchor: MeasuredVersion | None = None
    look: int = 1
    unseen: Sequence[UnseenRows] = ()
    sketch: Sequence[int] = ()

    @property
    def opponents(self) -> dict[str, MeasuredVersion]:
        """The versions to compare with, by role. An anchor of another evaluation set is none of them."""
        roles = {"champion": self.champion, "anchor": self.anchor}
        found = {role: version for role, version in roles.items() if version is not None}
        if self.anchor is not None and self.anchor.digest != self.digest:
            del found["anchor"]
        return found


@dataclass(frozen=True)
class UnseenRows:
    """Rows of one test split that no compared version has seen.

    Attributes:
        owner: Name of the version whose test split it is.
        total: Rows of the split.
        seen: Rows left out for each version that has seen them.
        unknown: Challenger or champion, if it is not known what they have seen.
        inputs: The measurements on the rows that are left.
    """

    owner: str
    total: int
    seen: Mapping[str, int]
    unknown: Collection[str]
    inputs: GateInputs

    def missing(self, least: int) -> int:
        """Return how many rows are missing to compare on `least`."""
        return max(0, least - len(self.inputs.frame))

    def __str__(self) -> str:
        left_out = "; ".join(f"{name} has seen {rows}" for name, rows in self.seen.items())
        left = f"{len(self.inputs.frame)} of {self.total} rows of the test split of {self.owner} are unseen"
        return f"{left} ({left_out})" if left_out else left


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
        order: tuple[Status, ...] = ("fail", "inconclusive", "pass", "undecided")
        return min((check.status for check in self.checks), key=order.index, default="fail")

    @property
    def reasons(self) -> list[str]:
        """The texts of the checks that decided the status; with `pass` those of undecided slices too."""
        decisive = (self.status, "undecided") if self.status == "pass" else (self.status,)
        return [check.words for check in self.checks if check.status in decisive] or ["nothing was checked"]

    @property
    def proven_better(self) -> bool:
        """Whether the challenger is better than the anchor, or the champion in its place, not only not worse."""
        compared = [check.figures for check in self.checks if check.name in ("difference", "anchor")]
        lows = [figures["low"] for figures in compared if "low" in figures]
        return bool(lows) and lows[-1] > 0

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
    checks += _closed("labels", lambda: _labels(inputs, config))
    checks += _closed("floors", lambda: _floors(inputs, config, bootstrap))
    if inputs.champion is not None:
        deciding = deciding_inputs(inputs, config)
        checks += unseen_checks(inputs, deciding, config.min_unseen)
        if deciding is not None:
            checks += _closed("difference", lambda: difference_checks(deciding, config))
            checks += _closed("slices", lambda: slice_checks(deciding, config))
            checks += _closed("proven", lambda: _proven(inputs, deciding, config))
    for name, budget in (
        ("latency", config.budgets.latency),
        ("memory", config.budgets.memory),
        ("size", config.budgets.size),
    ):
        checks += _budget(inputs, name, budget)
    return Verdict(checks)


def deciding_inputs(inputs: GateInputs, config: GateConfig) -> GateInputs | None:
    """Return the measurements that decide: on the common test split, or on the first one with enough unseen rows."""
    if not inputs.unseen:
        return inputs
    enough = (rows for rows in inputs.unseen if not rows.unknown and not rows.missing(config.min_unseen))
    return next((replace(rows.inputs, look=inputs.look, unseen=()) for rows in enough), None)


def unseen_checks(inputs: GateInputs, deciding: GateInputs | None, least: int) -> Iterator[Check]:
    """Say which rows decide, how many were left out, and what is missing if none can."""
    for rows in inputs.unseen:
        numbers = {"rows": len(rows.inputs.frame), "total": rows.total, "seen": dict(rows.seen)}
        if rows.unknown:
            who = " and ".join(sorted(rows.unknown))
            fix = "run `dvc pull` where a remote has its training rows"
            words = f"it is not known which rows {who} has seen, since no record or data of it is at hand; {fix}"
            yield Check("unseen", "undecided" if deciding else "inconclusive", words, numbers)
        elif missing := rows.missing(least):
            words = f"{rows}, {least} are required: {missing} are missing"
            yield Check("unseen", "undecided" if deciding else "inconclusive", words, numbers)
        elif deciding is not None and rows.inputs.digest == deciding.digest:
            yield Check("unseen", "pass", f"{rows}: these decide", numbers)


def _proven(inputs: GateInputs, deciding: GateInputs, config: GateConfig) -> Iterator[Check]:
    """Compare on the split that the champion was proven on too: only a proven loss there matters."""
    for rows in inputs.unseen:
        known = not rows.unknown and not rows.missing(config.min_unseen)
        if not known or rows.inputs.champion is None or rows.inputs.digest == deciding.digest:
            continue
        metric = _metric(inputs, config.difference.metric)
        alpha = (1 - config.confidence) * config.looks.share(inputs.look)
        check = _difference(rows.inputs, "champion", rows.inputs.champion, metric, config, alpha)
        status: Status = check.status if check.status in ("pass", "fail") else "undecided"
        yield replace(check, name="proven", status=status, words=f"{check.words}, where {rows}")


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
        if not same and inputs.unseen and side is inputs.champion:
            words = f"{side.name} was made with another test split, so that rows decide which neither has seen"
            same = True
        yield Check("digest", "pass" if same else "fail", words)


def _overlap(inputs: GateInputs, most: float) -> Check:
    rows = len(inputs.challenger.predictions)
    if inputs.overlap is None:
        return Check("overlap", "fail", f"the training rows of {inputs.challenger.name} are not available")
    share = inputs.overlap / rows if rows else math.nan
    words = f"{inputs.overlap} of {rows} evaluation rows are also in the training split, {most:.2%} allowed"
    return Check("overlap", "pass" if share <= most else "fail", words, {"rows": inputs.overlap, "share": share})


def _labels(inputs: GateInputs, config: GateConfig) -> Iterator[Check]:
    """Tell each label that the challenger never predicts; only a task of one label a row has the columns."""
    predictions = inputs.challenger.predictions
    if not {"label", "prediction"} <= set(predictions):
        return
    for label, rows in never_predicted(predictions["label"].to_numpy(), predictions["prediction"].to_numpy()).items():
        words = f"{inputs.challenger.name} never predicts the label {label}, which {rows} evaluation rows have"
        yield Check("labels", "fail" if config.never_predicted == "fail" else "undecided", words, {"rows": rows})


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


def difference_checks(inputs: GateInputs, config: GateConfig) -> Iterator[Check]:
    """Compare with the champion and the anchor; both must hold, so that they share one level."""
    metric = _metric(inputs, config.difference.metric)
    share = config.looks.share(inputs.look)
    if not share:
        words = f"the {config.looks.planned} looks planned for this evaluation set are used up; prepare a fresh split"
        yield Check("difference", "inconclusive", words, {"look": inputs.look})
        return
    alpha = (1 - config.confidence) * share
    for role, other in inputs.opponents.items():
        yield _difference(inputs, role, other, metric, config, alpha)
    if inputs.anchor is not None and "anchor" not in inputs.opponents:
        words = f"{inputs.anchor.name} was the anchor, but on another evaluation set; the champion takes its place"
        yield Check("anchor", "pass", words)


def _difference(
    inputs: GateInputs,
    role: str,
    other: MeasuredVersion,
    metric: Metric,
    config: GateConfig,
    alpha: float,
) -> Check:
    options = config.difference
    pair = checked_pair(inputs.challenger.predictions, other.predictions, inputs.target_columns)
    superior = options.claim == "superiority" and role == "champion"
    bound = options.margin if superior else -options.margin
    gain = paired_gain(pair, metric, bound, Bootstrap(config.resamples, config.confidence, config.seed), alpha)
    status: Status = "pass" if gain.low > bound else "fail" if gain.high <= bound else "inconclusive"
    if superior:
        verb = {"pass": "is", "fail": "is not", "inconclusive": "may or may not be"}[status]
        claim = f"{verb} better by more than {options.margin:g}"
    else:
        verb = {"pass": "is not", "fail": "is", "inconclusive": "may be"}[status]
        claim = f"{verb} worse by {options.margin:g} or more"
    anchor = f" than the anchor, {other.name}," if role == "anchor" else ""
    look = f", look {inputs.look} at this evaluation set" if inputs.look > 1 else ""
    words = (
        f"{inputs.challenger.name} {claim}{anchor} in {metric.name}: gain {gain.value:+.4f} "
        f"({_percent(alpha)} interval {gain.low:+.4f} to {gain.high:+.4f}{look})"
    )
    figures = {"metric": metric.name, "claim": options.claim, "margin": options.margin, **gain.as_dict()}
    name = "anchor" if role == "anchor" else "difference"
    return Check(name, status, words, figures | {"opponent": other.name, "look": inputs.look, "alpha": alpha})


def _percent(alpha: float) -> str:
    """Return the confidence of an interval with `alpha` on each side, with two digits of what is left to 100 %."""
    left = 200 * alpha
    digits = max(0, 1 - math.floor(math.log10(left)))
    text = f"{100 - left:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"


def slice_checks(inputs: GateInputs, config: GateConfig) -> Iterator[Check]:
    """Test all slices together, against the champion and the anchor; of the anchor's only losses are shown."""
    options = config.slices
    parts = _cut(inputs.frame, options.columns)
    yield from _required(inputs.frame, options.required, options.min_rows)
    metric = _metric(inputs, config.difference.metric)
    tested, untested = pool_small(parts, options.min_rows, len(inputs.frame))
    opponents = inputs.opponents
    ours = inputs.challenger.predictions
    pairs = [checked_pair(ours, other.predictions, inputs.target_columns) for other in opponents.values()]
    rows = [part.rows for part in tested]
    tests = joint_tests(pairs, rows, metric, options.margin, options.significance, config.resamples, config.seed)
    for (role, other), results in zip(opponents.items(), tests, strict=True):
        for part, test in zip(tested, results, strict=True):
            check = _slice(part, test, metric, options, other if role == "anchor" else None)
            if role == "champion" or check.status == "fail":
                yield check
    if untested or not tested:
        rows_left = sum(len(part.rows) for part in untested)
        words = f"{len(untested)} slices of fewer than {options.min_rows} rows ({rows_left} in all) were not tested"
        yield Check("slice", "undecided", words, {"small": len(untested), "rows": rows_left})


def _slice(part: Slice, test: PartTest, metric: Metric, options: SlicesConfig, anchor: MeasuredVersion | None) -> Check:
    """Return a slice's result: lost, kept, or that its rows cannot tell."""
    status: Status
    title = f"slice {part.column} {part.name} ({len(part.rows)} rows)"
    measured = f"in {metric.name}: gain {test.gain:+.4f}"
    against = f" to the anchor, {anchor.name}," if anchor is not None else ""
    if test.p < options.significance:
        status, result = "fail", "lost"
        words = f"{title} loses more than {options.margin:g}{against} {measured}, adjusted p {test.p:.2g}"
    elif test.low > -options.margin:
        status, result = "pass", "kept"
        words = f"{title} loses less than {options.margin:g} {measured}, at least {test.low:+.4f}"
    else:
        status, result = ("inconclusive" if options.undecided == "inconclusive" else "undecided"), "cannot be decided"
        words = f"{title} cannot be decided {measured}; its rows show only a loss of {test.smallest:.2g} or more"
    figures = {"column": part.column, "slice": part.name, "rows": len(part.rows), "metric": metric.name}
    numbers = {"value": test.gain, "low": test.low, "high": test.high, "smallest_loss": test.smallest, "p": test.p}
    rounded = {name: round(number, 6) for name, number in numbers.items()}
    return Check("slice", status, words, {**figures, **rounded, "result": result})


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
        values = value_names(frame, column)
        for name in names:
            rows = int((values == name).sum())
            if rows < least:
                state = "is empty" if rows == 0 else f"has {rows} rows, {least} are required"
                words = f"the required slice {column} {name} {state}"
                yield Check("slice", "fail", words, {"column": column, "slice": name, "rows": rows})


def _budget(inputs: GateInputs, name: str, budget: BudgetConfig) -> Iterator[Check]:
    ours: float = getattr(inputs.challenger.costs, name)
    theirs = {role: float(getattr(version.costs, name)) for role, version in inputs.opponents.items()}
    bounds = []
    if budget.limit is not None:
        bounds.append((budget.limit, f"the limit is {budget.limit:g}"))
    if budget.ratio is not None:
        for role, cost in theirs.items():
            formats = [version.costs.precision for version in (inputs.challenger, inputs.opponents[role])]
            other = "" if formats[0] == formats[1] else f" ({formats[0]} serves here, {formats[1]} there)"
            bounds.append((budget.ratio * cost, f"{budget.ratio:g} times the {role}'s {cost:.2f} is allowed{other}"))
    for bound, allowed in bounds:
        within = math.isfinite(ours) and math.isfinite(bound) and 0 < ours <= bound
        words = f"{name}: {ours:.2f} {_UNITS[name]}, {allowed}"
        yield Check(name, "pass" if within else "fail", words, {"value": ours, "bound": bound, **theirs})


def _metric(inputs: GateInputs, name: str | None) -> Metric:
    wanted = name or inputs.main_metric
    for metric in inputs.metrics:
        if metric.name == wanted:
            return metric
    known = ", ".join(metric.name for metric in inputs.metrics if GROUP not in metric.name)
    raise UserError(
        f"{wanted!r} is not a metric of this task", where="gate.difference.metric", fix=f"Choose among {known}"
    )
