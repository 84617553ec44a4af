"""`textmill choose`: screen candidates within a time budget and recommend one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from textmill.config.layout import Layout
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.registry.runs.nested_runs import NestedRuns, nested_runs
from textmill.selection.candidate_data import CandidateData
from textmill.selection.candidates import Candidate, compose_candidate, select_candidates
from textmill.selection.halving import TrainingCost, allocate_budget, count_rungs, select_survivors
from textmill.selection.learning_curve import extrapolate
from textmill.selection.problem import Limits, Problem, problem_params
from textmill.selection.recommendation import Recommendation, recommend
from textmill.selection.results import Result, ServingCost
from textmill.selection.serving_costs import measure_baseline, measure_chat, measure_network
from textmill.selection.trials import BaselineTrial, ChatTrial, Clock, NetworkTrial, Trial
from textmill.selection.workspace import open_workspace

log = logging.getLogger("textmill")

EXPERIMENT = "choose"
"""MLflow experiment of the screenings."""
DEFAULT_SHARE = 0.2
"""Default budget, as a share of the cost of training every candidate to completion."""
_MIN_RUNG_SHARE = 0.05  # of that cost is left for the rungs, even after expensive first trials


class _Screening:
    """State of one screening: its trials, its clock and the reasons for exclusions."""

    def __init__(self, limits: Limits, clock: Clock, whole: bool) -> None:
        self.whole = whole
        self.clock = clock
        self.limits = limits
        self.excluded: dict[str, str] = {}
        self.serving: dict[str, ServingCost] = {}
        self.trials: list[Trial] = []
        self._started = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the screening began."""
        return self.clock() - self._started

    def require_time(self, action: str, *, at_once: bool = False) -> None:
        """Raise when the budget is used up, or when there is a budget and `at_once` is set."""
        if self.limits.budget is not None and (at_once or self.elapsed >= self.limits.budget):
            raise UserError(
                f"too small: {action} already took {self.elapsed:.0f} s",
                where=f"--budget {self.limits.budget:g}s",
                fix="Use a budget several times as large, or fewer candidates (--only)",
            )

    def record_serving_cost(self, name: str, cost: ServingCost) -> bool:
        """Record latency and size; return False and exclude the candidate when one exceeds its limit."""
        self.serving[name] = cost
        for kind, value, limit, unit in (
            ("latency", cost.latency, self.limits.latency, "ms"),
            ("size", cost.size, self.limits.size, "MB"),
        ):
            if limit is not None and value > limit:
                self.excluded[name] = f"{kind} {value:.4g} {unit} exceeds the limit of {limit:g} {unit}"
                return False
        return True


def choose(
    problem: Problem,
    limits: Limits,
    layout: Layout,
    *,
    only: Sequence[str] = (),
    added: Sequence[str] = (),
    changes: dict[str, Any] | None = None,
    whole: bool = False,
) -> Recommendation:
    """Screen the candidates by successive halving and recommend one.

    MLflow tracks it in the experiment `choose`: one run `choose-DATA` with a child run for each
    candidate.

    Args:
        problem: Data and task.
        limits: Time budget, and limits on latency and size.
        layout: The project.
        only: Candidates to try; empty for all that fit the task.
        added: Further candidates: names, hub ids, folders.
        changes: Settings of `params.yaml` for all candidates.
        whole: Train every candidate to completion instead, without a budget.

    Raises:
        UserError: Data or task does not exist, the data cannot be prepared, no candidate fits or is
            within the limits, or the budget is too small for any trial.
    """
    params = problem_params(problem, layout)
    selected = select_candidates(layout, problem.task, only, added)
    screening = _Screening(limits, _clock(limits), whole)
    with open_workspace(layout) as root:
        candidates = [
            compose_candidate(layout, root, name, candidate, params, changes or {})
            for name, candidate in selected.items()
        ]
        runtime = candidates[0].config.runtime.model_copy(update={"tracking_experiment": EXPERIMENT})
        with nested_runs(f"choose-{problem.name}", layout, runtime) as runs:
            runs.parent.log_params({"data": problem.data, "task": problem.task, "budget": limits.budget})
            _start_trials(screening, candidates, runs)
            if not whole:
                _run_rungs(screening)
            for trial in screening.trials:
                if isinstance(trial, BaselineTrial):  # its size grows with the training rows
                    screening.record_serving_cost(trial.name, measure_baseline(trial))
            recommendation = recommend(_results(screening, candidates), problem, screening.trials[0].metric)
            _log(runs, recommendation)
    return recommendation


def _clock(limits: Limits) -> Clock:
    """Return wall time for a budget or an accelerator; else CPU time, which other programs do not disturb."""
    import torch

    if limits.budget is not None or torch.accelerator.is_available():
        return time.perf_counter
    return time.process_time


def _start_trials(screening: _Screening, candidates: Sequence[Candidate], runs: NestedRuns) -> None:
    """Prepare the data, measure the networks as served, and train each candidate enough to measure its speed."""
    data = CandidateData()
    networks = [candidate for candidate in candidates if candidate.is_network]
    for candidate in [*networks, *(c for c in candidates if not c.is_network)]:
        log.info("choose: %s", candidate.title)
        try:
            trial = _start_trial(screening, candidate, networks, data, runs)
        except UserError as error:
            screening.excluded[candidate.name] = str(error)
            log.info("choose: %s is excluded: %s", candidate.name, error)
            continue
        if trial is not None:
            screening.trials.append(trial)
        screening.require_time("the first trials")
    if not screening.trials:
        reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in screening.excluded.items())
        raise UserError(f"no candidate is left ({reasons})", fix="Raise the limits, or add candidates")


def _start_trial(
    screening: _Screening, candidate: Candidate, networks: Sequence[Candidate], data: CandidateData, runs: NestedRuns
) -> Trial | None:
    trial: Trial
    prepared: Prepared
    if candidate.chat is not None:
        prepared = data.prepare_baseline(candidate, networks)
        asked = ChatTrial(candidate, prepared, screening.clock, runs.start_child(candidate.name))
        trial = asked
        if not screening.record_serving_cost(candidate.name, measure_chat(asked)):
            return None
    elif candidate.baseline is None:
        prepared = data.prepare_network(candidate)
        if not screening.record_serving_cost(candidate.name, measure_network(candidate, prepared)):
            return None
        trial = NetworkTrial(candidate, prepared, screening.clock, runs.start_child(candidate.name))
    else:
        prepared = data.prepare_baseline(candidate, networks)
        trial = BaselineTrial(candidate, prepared, screening.clock, runs.start_child(candidate.name))
    trial.advance(1.0 if screening.whole else trial.first_share)
    return trial


def _run_rungs(screening: _Screening) -> None:
    """Run the rungs after the first one, in which all candidates took part."""
    trials = screening.trials
    budget = _budget(screening)
    targets = allocate_budget(budget - screening.elapsed, _costs(trials))
    if not targets and any(trial.share < 1 for trial in trials):
        screening.require_time("the first trial of each candidate", at_once=True)
    _advance(trials, {name: share for name, share in targets.items() if share == 1})
    active = select_survivors(trials, Trial.is_worse)
    costs = _costs(active)
    rungs = count_rungs(len(costs), budget - screening.elapsed, sum(cost.fixed for cost in costs.values()))
    for number in range(rungs):
        _advance(active, allocate_budget((budget - screening.elapsed) / (rungs - number), _costs(active)))
        active = select_survivors(active, Trial.is_worse)


def _costs(trials: Sequence[Trial]) -> dict[str, TrainingCost]:
    return {trial.name: trial.cost for trial in trials if trial.share < 1}


def _advance(trials: Sequence[Trial], targets: Mapping[str, float]) -> None:
    for trial in trials:
        if targets.get(trial.name, 0.0) > trial.share:
            trial.advance(targets[trial.name])
            log.info("choose: %s: %.0f %% of its training done", trial.name, 100 * trial.share)


def _budget(screening: _Screening) -> float:
    if screening.limits.budget is not None:
        return screening.limits.budget
    costs = [trial.cost for trial in screening.trials]
    fixed, whole = sum(cost.fixed for cost in costs), sum(cost.whole for cost in costs)
    return max(DEFAULT_SHARE * (fixed + whole), screening.elapsed + fixed + _MIN_RUNG_SHARE * whole)


def _results(screening: _Screening, candidates: Sequence[Candidate]) -> list[Result]:
    trials = {trial.name: trial for trial in screening.trials}
    results = []
    for candidate in candidates:
        trial = trials.get(candidate.name)
        results.append(
            Result(
                name=candidate.name,
                title=candidate.title,
                baseline=not candidate.is_network,
                asked=candidate.chat is not None,
                rungs=trial.rungs if trial else [],
                expected=_expected(trial) if trial else None,
                serving=screening.serving.get(candidate.name),
                excluded=screening.excluded.get(candidate.name),
                predictions=trial.predictions if trial else None,
                params=candidate.params,
            )
        )
    return results


def _expected(trial: Trial) -> float | None:
    """Extrapolate the main metric to the full training; the first rung measured only the speed."""
    rungs = trial.rungs
    if trial.share >= 1:
        return rungs[-1].quality.value
    sign = 1.0 if trial.metric.higher_is_better else -1.0
    values = [sign * rung.quality.value for rung in rungs[1:]]
    top = 1.0 if all(0 <= value <= 1 for value in values) else math.inf
    value = extrapolate([rung.share for rung in rungs[1:]], values, top)
    return None if value is None else sign * value


def _log(runs: NestedRuns, recommendation: Recommendation) -> None:
    """Log each candidate's measurements to its run, and the recommendation to the parent run."""
    for result in recommendation.results:
        run = runs.children.get(result.name)
        if run is None:
            continue
        run.log_params({"params": result.params})
        if result.serving is not None:
            run.log_metrics({"latency_ms": result.serving.latency, "size_mb": result.serving.size})
        if result.rungs:
            run.log_metrics({"full_training_seconds": result.train_seconds})
        if result.excluded:
            run.set_tags({"textmill.excluded": result.excluded})
    runs.parent.set_tags({"textmill.advice": recommendation.best.name, "mlflow.note.content": recommendation.text})
