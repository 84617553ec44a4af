"""Successive halving (Jamieson & Talwalkar 2016): short trainings for all, longer ones for the better half.

The resource is the share of a candidate's own recipe, so that each is as far in its training as the
others whatever a step of it costs; a rung's money is the same in all rungs. Whom a paired test cannot
tell from the last of the better half goes on beside it (as in a race; Maron & Moore 1994). A candidate whose whole
recipe costs no more than its part of a rung is trained to the end there, and leaves the competition
for money without leaving that for quality: words counted on all rows cost less than a tenth of a
fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

ETA = 2
_WORTH = 4  # times its fixed costs must a rung's money be: short ones would only validate


@dataclass(frozen=True)
class Price:
    """What training further costs, in seconds.

    Attributes:
        fixed: Of every call: the network is built, the validation split is predicted.
        whole: Of the whole recipe's steps.
        done: Share of them that is done.
    """

    fixed: float
    whole: float
    done: float

    def of(self, share: float) -> float:
        """Going on from `done` to `share`."""
        return self.fixed + max(0.0, share - self.done) * self.whole


class Contender(Protocol):
    """A candidate that can be trained bit by bit.

    Attributes:
        name: Of the candidate.
        share: Of its recipe that is done; 1 when it is done with.
        quality: Of its answers now; more is better.
        price: Of going on, as measured so far.
    """

    name: str

    @property
    def share(self) -> float:
        """See above."""

    @property
    def quality(self) -> float:
        """See above."""

    @property
    def price(self) -> Price:
        """See above."""

    def advance(self, share: float) -> None:
        """Go on until `share` of the recipe is done."""


def rung_count(contenders: int, budget: float, fixed: float) -> int:
    """Rungs until one is left, which has the last for itself; fewer where each would cost little but validation.

    Args:
        contenders: That are not done.
        budget: Seconds for all rungs.
        fixed: Seconds of a rung before anything is trained, of all contenders together.
    """
    wanted = 1 + math.ceil(math.log(max(1, contenders), ETA))
    affordable = budget / (_WORTH * fixed) if fixed > 0 else wanted
    return max(1, math.floor(min(wanted, affordable)))


def allot(budget: float, prices: Mapping[str, Price]) -> dict[str, float]:
    """How far each may train for `budget` seconds in all: name -> share of its recipe.

    Those that can be finished for an equal part of the money are; the others go the same share
    further. Those that cannot go on are left out.
    """
    waiting = dict(sorted(prices.items(), key=lambda item: item[1].of(1.0)))
    targets = {}
    for name, price in list(waiting.items()):
        if price.of(1.0) > budget / len(waiting):
            break
        targets[name] = 1.0
        budget -= price.of(1.0)
        del waiting[name]
    steps = budget - sum(price.fixed for price in waiting.values())
    if waiting and steps > 0:
        further = steps / sum(price.whole for price in waiting.values())
        targets |= {name: min(1.0, price.done + further) for name, price in waiting.items()}
    return targets


ContenderT = TypeVar("ContenderT", bound=Contender)


def survivors(
    contenders: Sequence[ContenderT], is_worse: Callable[[ContenderT, ContenderT], bool] | None = None
) -> list[ContenderT]:
    """The better half (rounded up) of those that are not done, and whoever is not surely worse than its last.

    Those that are done need no money.

    Args:
        contenders: All.
        is_worse: Whether the first is surely worse than the second; None takes it for granted.
    """
    unfinished = [contender for contender in contenders if contender.share < 1]
    ranked = sorted(unfinished, key=lambda contender: contender.quality, reverse=True)
    kept = ranked[: math.ceil(len(ranked) / ETA)]
    if is_worse is None:
        return kept
    return kept + [contender for contender in ranked[len(kept) :] if not is_worse(contender, kept[-1])]
