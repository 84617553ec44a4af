"""The prepared splits as batches of tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from textmill.config.sections.train import BatchesConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.tasks.abilities import examples_of
from textmill.tasks.base import Task
from textmill.tasks.examples.rows import Examples
from textmill.text.batches import length_batches
from textmill.training.accumulation import WindowLoader
from textmill.training.batching import BatchPlan, BatchSampler, EpochPlanner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_VALIDATION_BUDGET = 4
"""Ratio of the validation budget to the training budget; validation computes no gradients."""


class PreparedDataModule(LightningDataModule):
    """Training batches under a token budget, and validation batches, longest first.

    Its state is the position in training: epoch and batch. `workers` processes prepare batches in advance;
    0 prepares them between the steps, which is faster when training on the CPU.

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
                raise UserError(f"the {name} split is empty", where=str(prepared.folder / name), fix="Add rows")
        self._position = (0, 0)
        self._plan = lru_cache(maxsize=2)(lambda epoch: self._planner().plan(epoch))

    # -- training ---------------------------------------------------------------------------

    def plan(self, epoch: int) -> BatchPlan:
        """Return the batches of all ranks in `epoch`."""
        return self._plan(epoch)

    def optimizer_steps(self, epochs: int) -> int:
        """Return the number of optimizer steps in `epochs`."""
        planner, accumulate = self._planner(), self._config.accumulate
        return sum(-(-planner.count(epoch) // accumulate) for epoch in range(epochs))

    def shapes(self, epoch: int) -> NDArray[np.int64]:
        """Return rows and longest length of each training batch, shape (batches, 2)."""
        lengths = self._train.in_epoch(epoch, self._seed).lengths
        return np.array([(len(rows), int(lengths[rows].max())) for rows in self.plan(epoch).batches])

    def validation_shapes(self) -> NDArray[np.int64]:
        """Return rows and longest length of each validation batch of this rank, shape (batches, 2)."""
        lengths = self._validation.lengths
        return np.array([(len(rows), int(lengths[rows].max())) for rows in self.validation_rows(self._rank())])

    def first_batch(self) -> Mapping[str, Any]:
        """Return the first batch of the first epoch, collated, for a trial."""
        rows = self.plan(0).batches[0].tolist()
        batch: Mapping[str, Any] = self._task.collate(self._train.in_epoch(0, self._seed).__getitems__(rows))
        return batch

    def rows(self) -> int:
        """Return the approximate number of rows in an epoch."""
        return len(self._train) if self._config.per_epoch is None else sum(map(len, self.plan(0).batches))

    def train_dataloader(self) -> Any:
        """Return the loader of this rank's parts of the epoch's batches, from the position of a resumed training.

        A rank without rows of a batch computes the batch's first row, which does not count.
        """
        epoch = self._processed_epochs()
        at_epoch, at_batch = self._position
        start = at_batch if epoch == at_epoch else 0
        plan = self.plan(epoch)
        parts = plan.parts(self._rank(), self._world_size())
        rows = [part if len(part) else batch[:1] for part, batch in zip(parts, plan.batches, strict=True)]
        loader = self._loader(self._train.in_epoch(epoch, self._seed), BatchSampler(rows, start), self._workers)
        without_rows = [number for number, part in enumerate(parts[start:]) if not len(part)]
        return WindowLoader(loader, self._config.accumulate, self._task, without_rows)

    def reached(self, epoch: int, batch: int) -> None:
        """Set the next batch of training: number `batch` of `epoch`."""
        self._position = (epoch, batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: epoch and number of the next batch."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._position = (int(state_dict["epoch"]), int(state_dict["batch"]))

    # -- validation -------------------------------------------------------------------------

    def val_dataloader(self) -> Any:
        """Return the loader of this rank's validation batches.

        All ranks have equal numbers, since each takes part in gathering sharded weights: some have the first
        batch once more.
        """
        batches = self.validation_rows(self._rank())
        return self._loader(self._validation, BatchSampler([*batches, *self._repeated(batches)]), 0)

    def validation_rows(self, rank: int) -> list[NDArray[np.int64]]:
        """Return the row numbers of the validation batches of `rank`."""
        batches = length_batches(self._validation.lengths, self._config.tokens * _VALIDATION_BUDGET)
        return batches[rank :: self._world_size()]

    def _repeated(self, batches: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        first = self.validation_rows(0)
        return first[:1] * (len(first) - len(batches))

    def validation_columns(self) -> Mapping[str, Sequence[Any]]:
        """Return the encoded columns of the validation split."""
        return self._validation.columns()

    # -- inner ------------------------------------------------------------------------------

    def _loader(self, examples: Examples, sampler: BatchSampler, workers: int) -> Any:
        return DataLoader(
            examples,  # type: ignore[arg-type]
            batch_sampler=sampler,
            collate_fn=self._task.collate,  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=self._on_gpu(),
            # A new iterator draws a seed, which must not come from the generator of dropout.
            generator=torch.Generator().manual_seed(self._seed),
        )

    def _planner(self) -> EpochPlanner:
        return EpochPlanner(
            self._train.in_epoch(0, self._seed).lengths,
            tokens=self._config.tokens,
            max_rows=self._config.max_rows,
            seed=self._seed,
            limit=self._config.per_epoch,
        )

    def _processed_epochs(self) -> int:
        # After loading a checkpoint of an epoch's end, `trainer.current_epoch` is still that epoch.
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
