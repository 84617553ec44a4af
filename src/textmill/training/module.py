# ruff: noqa: ARG002 - Lightning fixes the hooks' parameters
"""Any task's network as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from textmill.config.sections.train import OptimizerConfig
from textmill.metrics.base import Outputs
from textmill.tasks.base import State, Task
from textmill.text.batches import restore_order
from textmill.training.accumulation import Accumulation, MicroBatch
from textmill.training.distributed import gather_all
from textmill.training.optimizer import build_optimizer, build_schedule

if TYPE_CHECKING:
    from numpy.typing import NDArray

VALIDATION = "validation/"


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether the optimizer steps after a batch of the epoch."""
    done = batch_idx + 1
    return done % trainer.accumulate_grad_batches == 0 or done >= trainer.num_training_batches


class TrainingModule(LightningModule):
    """Computes the task's loss and metrics, and builds optimizer and schedule.

    Attributes:
        validation_metrics: Metrics of the last validation, by the task's names.
        outputs: The network's outputs in the last validation, in the order of the split.
        accumulation: Loss and scalars of the current step.
    """

    def __init__(self, task: Task, network: nn.Module, state: State, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.network = network
        self.validation_metrics: dict[str, float] = {}
        self.outputs: Outputs = {}
        self.accumulation = Accumulation(task, network)
        self._task = task
        self._state = state
        self._optimizer = optimizer
        self._outputs: dict[str, list[NDArray[np.float32]]] = {}

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """Return the micro-batch's part of the step's loss."""
        return self.accumulation.scaled_loss(batch, self.trainer.accumulate_grad_batches)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Compute the last gradients and take the step; then update the routers."""
        super().optimizer_step(*arguments, **options)
        self.accumulation.end_step()

    def loss_of(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch for another network of the same form, such as a copy."""
        with self.trainer.precision_plugin.train_step_context():
            return self._task.loss(network, batch).loss

    def on_validation_epoch_start(self) -> None:
        """Drop the outputs of an earlier validation."""
        self._outputs = {}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Store the network's outputs for the metrics of the whole split."""
        for name, values in self._task.loss(self.network, batch).outputs.items():
            self._outputs.setdefault(name, []).append(values.detach().float().cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        """Compute the task's metrics from the outputs of all ranks, and log them as `validation/NAME`."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        chunks: dict[str, list[NDArray[np.float32]]] = {}
        rows: list[NDArray[np.int64]] = []
        for rank, outputs in enumerate(gather_all(self._outputs)):
            rows += data.validation_rows(rank)
            for name, parts in outputs.items():
                chunks.setdefault(name, []).extend(parts)
        self._outputs = {}
        self.outputs = restore_order(chunks, rows)
        metrics = self._task.validation_metrics(self.outputs, data.validation_columns(), self._state)
        self.validation_metrics = metrics
        self.log_dict({VALIDATION + name: value for name, value in metrics.items()}, rank_zero_only=False)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm. Lightning refuses this with a fused optimizer, even where no scaler prevents it."""
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None and gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and a schedule over the whole training, stepped with the optimizer."""
        trainer = self.trainer
        fused = trainer.precision != "16-mixed"
        optimizer = build_optimizer(self.network, self._optimizer, fused=fused)
        steps = trainer.datamodule.optimizer_steps(trainer.max_epochs)  # type: ignore[attr-defined]
        schedule = build_schedule(optimizer, steps, self._optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
