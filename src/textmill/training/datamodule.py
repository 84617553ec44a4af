"""The prepared splits as batches of tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from textmill.config.sections.train import BatchesConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.tasks.abilities import examples_of
from textmill.tasks.base import Task
from textmill.tasks.examples.rows import Examples
from textmill.text.batches import length_batches
from textmill.training.batching import BatchPlan, BatchSampler, EpochPlanner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

_VALIDATION_BUDGET = 4
"""Validation needs no gradients, so its batches may be this many times as large."""


class PreparedDataModule(LightningDataModule):
    """Training batches under a token budget, and validation batches, longest first.

    Its state is how far into which epoch training has come.

    Args:
        task: Collates.
        prepared: The data.
        batches: The budget.
        seed: Of the order.
        workers: Processes that make batches ahead; 0 makes them between the steps, which is
            faster where the processor also trains.

    Raises:
        UserError: The training or validation split is empty.
    """

    def __init__(self, task: Task, prepared: Prepared, batches: BatchesConfig, seed: int, workers: int = 0) -> None:
        super().__init__()
        self._task = task
        self._config = batches
        self._seed = seed
        self._workers = workers
        self._train = examples_of(task, prepared.split("train"))
        self._validation = examples_of(task, prepared.split("validation"))
        for name, examples in (("train", self._train), ("validation", self._validation)):
            if len(examples) == 0:
                raise UserError(f"the {name} split is empty", where=str(prepared.folder / name), fix="Give more rows")
        self._position = (0, 0)
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    # -- training ---------------------------------------------------------------------------

    def plan(self, epoch: int) -> BatchPlan:
        """The batches of this rank in `epoch`."""
        return self._plan(epoch)

    def optimizer_steps(self, epochs: int) -> int:
        """Optimizer steps of a whole training."""
        planner, accumulate = self._planner(), self._config.accumulate
        return sum(-(-planner.count(epoch) // accumulate) for epoch in range(epochs))

    def first_batch(self) -> Mapping[str, Any]:
        """The first batch of the first epoch, collated, to try something on."""
        rows = self.plan(0).batches[0].tolist()
        batch: Mapping[str, Any] = self._task.collate(self._train.in_epoch(0, self._seed).__getitems__(rows))
        return batch

    def rows_of_rank(self) -> int:
        """Rows that a rank trains on in an epoch, about."""
        if self._config.per_epoch is not None:
            return sum(map(len, self.plan(0).batches))
        return len(self._train) // self._world_size()

    def train_dataloader(self) -> Any:
        """Batches of the epoch, from where a resumed training left off."""
        epoch = self._processed_epochs()
        at_epoch, at_batch = self._position
        sampler = BatchSampler(self.plan(epoch).batches, at_batch if epoch == at_epoch else 0)
        return self._loader(self._train.in_epoch(epoch, self._seed), sampler, self._workers)

    def reached(self, epoch: int, batch: int) -> None:
        """Note that the next batch to train on is number `batch` of `epoch`."""
        self._position = (epoch, batch)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch at which to go on."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state says."""
        self._position = (int(state_dict["epoch"]), int(state_dict["batch"]))

    # -- validation -------------------------------------------------------------------------

    def val_dataloader(self) -> Any:
        """The share of this rank in the validation batches."""
        return self._loader(self._validation, BatchSampler(self.validation_rows(self._rank())), 0)

    def validation_rows(self, rank: int) -> list[NDArray[np.int64]]:
        """Row numbers of the validation batches of `rank`."""
        everything = length_batches(self._validation.lengths, self._config.tokens * _VALIDATION_BUDGET)
        return everything[rank :: self._world_size()]

    def validation_columns(self) -> Mapping[str, Sequence[Any]]:
        """The encoded columns of the validation split."""
        return self._validation.columns()

    # -- inner ------------------------------------------------------------------------------

    def _loader(self, examples: Examples, sampler: BatchSampler, workers: int) -> Any:
        return DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=self._task.collate,  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=self._on_gpu(),
            # Its own generator: an iterator's start must not draw from the one that drives dropout.
            generator=_own_generator(self._seed),
        )

    def _planner(self) -> EpochPlanner:
        return EpochPlanner(
            self._train.in_epoch(0, self._seed).lengths,
            tokens=self._config.tokens,
            max_rows=self._config.max_rows,
            seed=self._seed,
            world_size=self._world_size(),
            limit=self._config.per_epoch,
        )

    def _make_plan(self, epoch: int) -> BatchPlan:
        return self._planner().plan(epoch, self._rank())

    def _processed_epochs(self) -> int:
        # `trainer.current_epoch` still counts from before when a checkpoint of an epoch's end is loaded.
        if self.trainer is None:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return int(progress.processed)

    def _rank(self) -> int:
        return int(self.trainer.global_rank) if self.trainer else 0

    def _world_size(self) -> int:
        return int(self.trainer.world_size) if self.trainer else 1

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _own_generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)
