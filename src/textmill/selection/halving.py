"""Successive halving (Jamieson & Talwalkar 2016): short trials of all candidates, longer ones of the better half.

The resource is the share of a candidate's own training, so that all candidates of a rung are equally
far, regardless of the cost of a step. All rungs have the same time budget. A candidate that a paired test cannot
tell from the last of the better half continues too (racing; Maron & Moore 1994). A candidate whose remaining
training fits its share of the rung's budget is trained to completion. It then needs no more budget but
still takes part in the ranking: TF-IDF on all rows costs less than a tenth of a fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

ETA = 2
_MIN_BUDGET_RATIO = 4  # rung budget over its fixed costs; shorter rungs would mostly validate


@dataclass(frozen=True)
class TrainingCost:
    """Cost of further training, in seconds.

    Attributes:
        fixed: Cost of each call: building the network and predicting the validation split.
        whole: Cost of all steps of the full training.
        done: Share of the steps that are done.
    """

    fixed: float
    whole: float
    done: float

    def until(self, share: float) -> float:
        """Return the cost of training from `done` to `share`."""
        return self.fixed + max(0.0, share - self.done) * self.whole


class Scored(Protocol):
    """A trial that can be ranked."""

    @property
    def share(self) -> float:
        """Share of the full training that is done; 1 when complete."""

    @property
    def quality(self) -> float:
        """Current quality; higher is better."""


ScoredT = TypeVar("ScoredT", bound=Scored)


def count_rungs(trials: int, budget: float, fixed: float) -> int:
    """Return the rungs until one of `trials` is left, or fewer where fixed costs would take most of a rung.

    The last trial has a rung for itself. `budget` is in seconds for all rungs, `fixed` for one rung and
    all trials.
    """
    wanted = 1 + math.ceil(math.log(max(1, trials), ETA))
    affordable = budget / (_MIN_BUDGET_RATIO * fixed) if fixed > 0 else wanted
    return max(1, math.floor(min(wanted, affordable)))


def allocate_budget(budget: float, costs: Mapping[str, TrainingCost]) -> dict[str, float]:
    """Divide `budget` seconds: name -> share of the full training to reach.

    A candidate whose remaining training fits its share of the budget is trained to completion. The
    others advance by the same share; without budget for a step they are left out.
    """
    waiting = dict(sorted(costs.items(), key=lambda item: item[1].until(1.0)))
    targets = {}
    for name, cost in list(waiting.items()):
        if cost.until(1.0) > budget / len(waiting):
            break
        targets[name] = 1.0
        budget -= cost.until(1.0)
        del waiting[name]
    steps = budget - sum(cost.fixed for cost in waiting.values())
    if waiting and steps > 0:
        further = steps / sum(cost.whole for cost in waiting.values())
        targets |= {name: min(1.0, cost.done + further) for name, cost in waiting.items()}
    return targets


def select_survivors(
    trials: Sequence[ScoredT], is_worse: Callable[[ScoredT, ScoredT], bool] | None = None
) -> list[ScoredT]:
    """Return the better half (rounded up) of the incomplete trials, and those not clearly worse than its last.

    `is_worse` tells whether the first is clearly worse than the second; None keeps the better half only.
    """
    incomplete = [trial for trial in trials if trial.share < 1]
    ranked = sorted(incomplete, key=lambda trial: trial.quality, reverse=True)
    kept = ranked[: math.ceil(len(ranked) / ETA)]
    if is_worse is None:
        return kept
    return kept + [trial for trial in ranked[len(kept) :] if not is_worse(trial, kept[-1])]
