"""`textmill choose`: screen the candidates within the budget, and give what was found."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from textmill.config.layout import Layout
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.registry.versions.family import Family, run_family
from textmill.selection.advice import Choice, advise
from textmill.selection.candidates import Candidate, chosen_candidates, lay_out
from textmill.selection.contenders import Baseline, Clock, Contestant, Network
from textmill.selection.copies import copies
from textmill.selection.halving import Price, allot, rung_count, survivors
from textmill.selection.learning_curve import extrapolate
from textmill.selection.materials import Materials
from textmill.selection.question import Limits, Question, question_lines
from textmill.selection.results import Result, Served
from textmill.selection.serving_costs import baseline_costs, network_costs

log = logging.getLogger("textmill")

EXPERIMENT = "choose"  # of the tracking store
SHARE_OF_ALL = 0.2
"""Of what training every candidate to the end would cost: what a screening without a budget may cost."""
_LEAST_SHARE = 0.05  # of it for the rungs, however dear the beginnings were


class _Screening:
    """One call: its candidates, its clock and why some are out."""

    def __init__(self, limits: Limits, clock: Clock, whole: bool) -> None:
        self.whole = whole
        self.clock = clock
        self.limits = limits
        self.excluded: dict[str, str] = {}
        self.served: dict[str, Served] = {}
        self.contestants: list[Contestant] = []
        self._started = clock()

    @property
    def spent(self) -> float:
        """Seconds since the call began."""
        return self.clock() - self._started

    def require_time(self, doing: str, *, at_once: bool = False) -> None:
        """Raise when the budget is used up, or `at_once` when there is one."""
        if self.limits.budget is not None and (at_once or self.spent >= self.limits.budget):
            raise UserError(
                f"too small: {doing} took {self.spent:.0f} s already",
                where=f"--budget {self.limits.budget:g}s",
                fix="Give several times as much, or fewer candidates (--only)",
            )

    def weigh(self, name: str, served: Served) -> bool:
        """Note what an answer costs; false where that is more than allowed."""
        self.served[name] = served
        for what, found, limit, unit in (
            ("latency", served.latency, self.limits.latency, "ms"),
            ("size", served.size, self.limits.size, "MB"),
        ):
            if limit is not None and found > limit:
                self.excluded[name] = f"{what} {found:.4g} {unit}, at most {limit:g} {unit} is allowed"
                return False
        return True


def choose(
    question: Question,
    limits: Limits,
    layout: Layout,
    *,
    only: Sequence[str] = (),
    added: Sequence[str] = (),
    changes: dict[str, Any] | None = None,
    whole: bool = False,
) -> Choice:
    """Screen the candidates by successive halving and advise one.

    All of it is tracked in MLflow as one run `choose-DATA` with one below it for each candidate, in
    the experiment `choose`.

    Args:
        question: Data and task.
        limits: What the screening, and what an answer, may cost.
        layout: The project.
        only: Candidates to try; all that fit when empty.
        added: More of them: names, hub ids, folders.
        changes: Lines of `params.yaml` for all candidates.
        whole: Train every candidate to the end instead, whatever it costs.

    Raises:
        UserError: The question cannot be understood, the data cannot be prepared, no candidate fits
            or is within the limits, or the budget is too small to try anything.
    """
    lines = question_lines(question, layout)
    wanted = chosen_candidates(layout, question.task, only, added)
    screening = _Screening(limits, _clock(limits), whole)
    with copies(layout) as root:
        candidates = [
            lay_out(layout, root, name, candidate, lines, changes or {}) for name, candidate in wanted.items()
        ]
        runtime = candidates[0].config.runtime.model_copy(update={"tracking_experiment": EXPERIMENT})
        with run_family(f"choose-{question.name}", layout, runtime) as family:
            family.parent.log_params({"data": question.data, "task": question.task, "budget": limits.budget})
            _enter(screening, candidates, Materials(root), family)
            if not whole:
                _compete(screening)
            for contestant in screening.contestants:
                if isinstance(contestant, Baseline):  # its size grows with the rows that it has seen
                    screening.weigh(contestant.name, baseline_costs(contestant))
            choice = advise(_results(screening, candidates), question, screening.contestants[0].metric)
            _log(family, choice)
    return choice


def _clock(limits: Limits) -> Clock:
    """Wall time for a budget. Without one shares are compared, which other programs must not disturb."""
    import torch

    if limits.budget is not None or torch.accelerator.is_available():
        return time.perf_counter
    return time.process_time


def _enter(screening: _Screening, candidates: Sequence[Candidate], materials: Materials, family: Family) -> None:
    """Prepare the data, weigh the networks, and let everyone train a little, to tell its speed.

    Raises:
        UserError: Nobody is left.
    """
    networks = [candidate for candidate in candidates if candidate.baseline is None]
    for candidate in [*networks, *(c for c in candidates if c.baseline is not None)]:
        log.info("choose: %s", candidate.title)
        try:
            entered = _entered(screening, candidate, networks, materials, family)
        except UserError as error:
            screening.excluded[candidate.name] = str(error)
            log.info("choose: %s is left out: %s", candidate.name, error)
            continue
        if entered is not None:
            screening.contestants.append(entered)
        screening.require_time("trying the first candidates")
    if not screening.contestants:
        reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in screening.excluded.items())
        raise UserError(f"no candidate is left ({reasons})", fix="Allow more, or add candidates")


def _entered(
    screening: _Screening, candidate: Candidate, networks: Sequence[Candidate], materials: Materials, family: Family
) -> Contestant | None:
    contestant: Contestant
    if candidate.baseline is None:
        prepared: Prepared = materials.prepared(candidate)
        if not screening.weigh(candidate.name, network_costs(candidate, prepared)):
            return None
        contestant = Network(candidate, prepared, screening.clock, family.child(candidate.name))
    else:
        prepared = materials.words(candidate, networks)
        contestant = Baseline(candidate, prepared, screening.clock, family.child(candidate.name))
    contestant.advance(1.0 if screening.whole else contestant.first_share)
    return contestant


def _compete(screening: _Screening) -> None:
    """The rungs after the first, which everyone was in.

    Raises:
        UserError: The budget leaves nothing for them.
    """
    contestants = screening.contestants
    budget = _budget(screening)
    cheap = allot(budget - screening.spent, _prices(contestants))
    if not cheap and any(contestant.share < 1 for contestant in contestants):
        screening.require_time("trying each candidate", at_once=True)
    _advance(contestants, {name: share for name, share in cheap.items() if share == 1})
    active = survivors(contestants, Contestant.is_worse)
    rungs = _rungs(active, budget - screening.spent)
    for number in range(rungs):
        _advance(active, allot((budget - screening.spent) / (rungs - number), _prices(active)))
        active = survivors(active, Contestant.is_worse)


def _prices(contestants: Sequence[Contestant]) -> dict[str, Price]:
    return {contestant.name: contestant.price for contestant in contestants if contestant.share < 1}


def _rungs(contestants: Sequence[Contestant], budget: float) -> int:
    prices = _prices(contestants)
    return rung_count(len(prices), budget, sum(price.fixed for price in prices.values()))


def _advance(contestants: Sequence[Contestant], targets: Mapping[str, float]) -> None:
    for contestant in contestants:
        if targets.get(contestant.name, 0.0) > contestant.share:
            contestant.advance(targets[contestant.name])
            log.info("choose: %s is at %.0f %% of its recipe", contestant.name, 100 * contestant.share)


def _budget(screening: _Screening) -> float:
    """Seconds for the whole screening."""
    if screening.limits.budget is not None:
        return screening.limits.budget
    prices = [contestant.price for contestant in screening.contestants]
    fixed, whole = sum(price.fixed for price in prices), sum(price.whole for price in prices)
    return max(SHARE_OF_ALL * (fixed + whole), screening.spent + fixed + _LEAST_SHARE * whole)


def _results(screening: _Screening, candidates: Sequence[Candidate]) -> list[Result]:
    found = {contestant.name: contestant for contestant in screening.contestants}
    results = []
    for candidate in candidates:
        contestant = found.get(candidate.name)
        results.append(
            Result(
                name=candidate.name,
                title=candidate.title,
                baseline=candidate.baseline is not None,
                rungs=contestant.rungs if contestant else [],
                expected=_expected(contestant) if contestant else None,
                served=screening.served.get(candidate.name),
                excluded=screening.excluded.get(candidate.name),
                predictions=contestant.predictions if contestant else None,
                lines=candidate.lines,
            )
        )
    return results


def _expected(contestant: Contestant) -> float | None:
    """The main metric after the whole recipe; the first rung only told the speed and is left out."""
    rungs = contestant.rungs
    if contestant.share >= 1:
        return rungs[-1].quality.value
    sign = 1.0 if contestant.metric.higher_is_better else -1.0
    values = [sign * rung.quality.value for rung in rungs[1:]]
    top = 1.0 if all(0 <= value <= 1 for value in values) else math.inf
    found = extrapolate([rung.share for rung in rungs[1:]], values, top)
    return None if found is None else sign * found


def _log(family: Family, choice: Choice) -> None:
    """The figures of each candidate with its run, the table and the advice with the one above."""
    for result in choice.results:
        run = family.children.get(result.name)
        if run is None:
            continue
        run.log_params({"params": result.lines})
        if result.served is not None:
            run.log_metrics({"latency_ms": result.served.latency, "size_mb": result.served.size})
        if result.rungs:
            run.log_metrics({"full_training_seconds": result.train_seconds})
        if result.excluded:
            run.set_tags({"textmill.excluded": result.excluded})
    family.parent.set_tags({"textmill.advice": choice.best.name, "mlflow.note.content": choice.words})
