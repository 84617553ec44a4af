"""Gradients of micro-batches that sum to the gradient of one batch of all their rows.

A step has the micro-batches of one window, each divided over the ranks. A loss that averages over targets is weighted
by the share of the step's targets. Two kinds of loss are not such means:

- A loss that compares rows (`ComparesRows`) needs the vectors of all rows. Gradient caching (Gao et al. 2021)
  computes them without activations, and then the gradients of one micro-batch after the other.
- The load-balancing loss of routers needs the experts' load of the whole step. A first pass without gradients
  counts it.

Both cost one more forward pass, only with several micro-batches. The first pass replays the same random draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textmill.errors import UserError
from textmill.models.ranks import rank_count, sum_over_ranks
from textmill.models.routing.base import Router
from textmill.tasks.abilities import ComparesRows
from textmill.tasks.base import Task
from textmill.training import random_state
from textmill.training.distributed import gather_all

Tensors = Mapping[str, Tensor]


class MicroBatch(NamedTuple):
    """One of the batches whose gradients form a step of the optimizer, as far as this rank computes it.

    Attributes:
        batch: Collated batch.
        number: Its number in the window of the step, from 0.
        targets: Number of its targets, see `Task.target_count`; 0 where this rank has no rows of the batch.
        total: Number of targets of the window on this rank.
        window: All batches of the window with their targets, in the first micro-batch of several; else none.
    """

    batch: Tensors
    number: int
    targets: int
    total: int
    window: tuple[tuple[Tensors, int], ...]


class WindowLoader:
    """Yields the batches of a loader as micro-batches that know their window.

    Args:
        loader: Loader of collated batches.
        size: Micro-batches of a window; the last window of an epoch may have fewer.
        task: Counts the targets.
        without_rows: Numbers of the batches of which this rank has no rows: theirs do not count.
    """

    def __init__(self, loader: Any, size: int, task: Task, without_rows: Iterable[int] = ()) -> None:
        self._loader = loader
        self._size = size
        self._task = task
        self._without_rows = frozenset(without_rows)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[MicroBatch]:
        batches = enumerate(self._loader)
        while window := tuple(
            (batch, 0 if position in self._without_rows else self._task.target_count(batch))
            for position, batch in islice(batches, self._size)
        ):
            total = sum(targets for _, targets in window)
            for number, (batch, targets) in enumerate(window):
                yield MicroBatch(batch, number, targets, total, window if number == 0 and len(window) > 1 else ())


class Accumulation:
    """Computes the losses of a step's micro-batches, and updates the routers after the step.

    Attributes:
        loss: Loss of the step so far, without gradient: at its end, once `end_window` has summed over the ranks,
            the mean over the targets of all ranks.
        terms: Scalars to log, in the same way.
        window: Batches of the step so far.
    """

    def __init__(self, task: Task, network: nn.Module) -> None:
        self.loss = torch.zeros(())
        self.terms: dict[str, Tensor] = {}
        self.window: list[Tensors] = []
        self._task = task
        self._network = network
        self._routers = [module for module in network.modules() if isinstance(module, Router)]
        self._total: Tensor | int = 1
        self._cached: list[tuple[dict[str, Any], Tensors]] = []
        self._whole_loss = torch.zeros(())

    @property
    def whole_batch_router(self) -> str | None:
        """Name of a router that assigns the tokens of a batch together; None without one."""
        return next((type(router).__name__ for router in self._routers if router.assigns_batch), None)

    def check(self, size: int, ranks: int = 1) -> None:
        """Check that a step can have `size` micro-batches, and that each can be divided over `ranks`.

        Raises:
            UserError: A router assigns the tokens of a batch together.
        """
        if ranks > 1 and self.whole_batch_router:
            raise UserError(
                f"the router {self.whole_batch_router} assigns a batch as a whole; {ranks} processes cannot share it",
                where="trainer.devices",
                fix="Train with one process, or choose another router of conf/router/",
            )
        if size > 1 and self.whole_batch_router:
            raise UserError(
                f"the router {self.whole_batch_router} assigns a batch as a whole, so it cannot be split",
                where="train.batches.accumulate",
                fix="Set it to 1 and raise train.batches.tokens, or choose another router of conf/router/",
            )

    def scaled_loss(self, micro: MicroBatch, size: int) -> Tensor:
        """Return the loss of a micro-batch, scaled by its share of the step.

        The gradients, divided by `size` and averaged over the ranks, sum to that of one batch of all rows.
        """
        if micro.number == 0:
            self._begin(micro)
        else:
            self._count_earlier()
        self.window.append(micro.batch)
        ranks = rank_count()
        task = self._task
        for router in self._routers:
            router.idle = micro.targets == 0
        scale: Tensor | float
        if isinstance(task, ComparesRows) and task.compares_rows and (self._cached or ranks > 1):
            loss, value, scale = *self._compared_loss(task, micro), size * ranks
            terms: Tensors = {}
        else:
            step = task.loss(self._network, micro.batch)
            loss, value, terms = step.loss, step.loss.detach(), step.logged
            scale = size * ranks * micro.targets / self._total
        self._log(micro, value, terms)
        whole = size == 1 and ranks == 1 and micro.targets > 0
        return loss if whole else loss * scale

    def end_window(self) -> None:
        """Sum the logged scalars over the ranks. All ranks must call this, once a step."""
        if rank_count() == 1:
            return
        names = sorted(self.terms)
        summed = sum_over_ranks(torch.stack([self.loss.float(), *(self.terms[name].float() for name in names)]))
        self.loss, *terms = summed.unbind()
        self.terms = dict(zip(names, terms, strict=True))

    def end_step(self, *, update: bool = True) -> None:
        """Update the routers by the load of the whole step, unless the step was skipped."""
        self._count_earlier()
        for router in self._routers:
            if update and router.before is not None:
                router.update(sum_over_ranks(router.before))
            router.before = router.step_load = router.step_tokens = None
            router.idle = False

    # -- inner ------------------------------------------------------------------------------

    def _begin(self, micro: MicroBatch) -> None:
        """Count the step's targets and tokens; do the first pass where one is needed."""
        self._total = max(1, micro.total)
        self._cached = []
        self.window = []
        tokens: int | None = None
        if micro.window or rank_count() > 1:
            parts = micro.window or ((micro.batch, micro.targets),)
            tokens = sum(batch["input_ids"].numel() for batch, targets in parts if targets)
        if rank_count() > 1:
            device = micro.batch["input_ids"].device
            counted = sum_over_ranks(torch.tensor([micro.total, tokens], device=device))
            self._total = counted[0].clamp(min=1)
            tokens = int(counted[1]) if self._routers else None
        for router in self._routers:
            router.step_tokens = tokens
        if not micro.window:
            return
        task = self._task
        if isinstance(task, ComparesRows) and task.compares_rows:
            self._cache_gradients(task, micro.window)
        elif any(router.balances_by_loss for router in self._routers):
            self._count_loads(micro.window)

    def _count_earlier(self) -> None:
        """Add the load of the last micro-batch to that of the step's earlier ones."""
        for router in self._routers:
            if router.load is not None:
                router.before = router.load if router.before is None else router.before + router.load

    def _count_loads(self, window: tuple[tuple[Tensors, int], ...]) -> None:
        """Route all micro-batches, and tell the routers the load of the step."""
        state = random_state.capture()
        with torch.no_grad():
            for batch, targets in window:
                for router in self._routers:
                    router.idle = targets == 0
                self._task.loss(self._network, batch)
                self._count_earlier()
        random_state.restore(state)
        for router in self._routers:
            if router.before is not None:
                router.step_load, router.before = sum_over_ranks(router.before), None

    def _cache_gradients(self, task: ComparesRows, window: tuple[tuple[Tensors, int], ...]) -> None:
        """Compute the loss of all rows, and its gradients by the vectors of each micro-batch."""
        states, parts = [], []
        state = random_state.capture()
        with torch.no_grad():
            for batch, _ in window:
                states.append(random_state.capture())
                parts.append(task.embed(self._network, batch))
        random_state.restore(state)
        leaves = [{name: each.requires_grad_() for name, each in vectors.items()} for vectors in parts]
        counted = [_counted(vectors, targets) for vectors, (_, targets) in zip(leaves, window, strict=True)]
        targets = [_counted(task.compared_targets(batch), targets) for batch, targets in window]
        loss = _loss_over_ranks(task, _joined(counted), _joined(targets))
        flat = torch.autograd.grad(loss, [each for vectors in leaves for each in vectors.values()])
        gradients = iter(flat)
        self._cached = [
            (before, {name: next(gradients) for name in vectors})
            for before, vectors in zip(states, leaves, strict=True)
        ]
        self._whole_loss = loss.detach()

    def _compared_loss(self, task: ComparesRows, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return a scalar with the gradient of the step's loss by a micro-batch, and the step's loss."""
        if not self._cached:
            vectors = _counted(task.embed(self._network, micro.batch), micro.targets)
            loss = _loss_over_ranks(task, vectors, _counted(task.compared_targets(micro.batch), micro.targets))
            return loss, loss.detach()
        state, gradients = self._cached[micro.number]
        random_state.restore(state)
        vectors = task.embed(self._network, micro.batch)
        products = [(vectors[name] * gradient).sum() for name, gradient in gradients.items()]
        return torch.stack(products).sum(), self._whole_loss

    def _log(self, micro: MicroBatch, loss: Tensor, terms: Tensors) -> None:
        if rank_count() == 1 and 0 < micro.targets == micro.total:
            self.loss, self.terms = loss, {name: value.detach() for name, value in terms.items()}
            return
        share = micro.targets / self._total
        if micro.number == 0:
            self.loss, self.terms = torch.zeros_like(loss), {}
        self.loss = self.loss + share * loss
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0) + share * value.detach()


def _counted(rows: dict[str, Tensor], targets: int) -> dict[str, Tensor]:
    """Return the rows if they count, else none, with a gradient of zero."""
    return rows if targets else {name: each[:0] for name, each in rows.items()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _loss_over_ranks(task: ComparesRows, vectors: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Return the loss of the rows of all ranks, with the gradient of this rank's rows."""
    if rank_count() > 1:
        own = torch.distributed.get_rank()
        device = next(iter(vectors.values())).device
        shared = tuple({name: each.detach().cpu() for name, each in part.items()} for part in (vectors, targets))
        everyone = [
            [{name: each.to(device) for name, each in part.items()} for part in parts] for parts in gather_all(shared)
        ]
        everyone[own] = [vectors, targets]
        vectors, targets = (_joined(list(parts)) for parts in zip(*everyone, strict=True))
    return task.compare(vectors, targets)
