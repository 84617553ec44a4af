# ruff: noqa: ARG002 - Lightning fixes the hooks' parameters
"""Any task's network as a LightningModule."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from textmill.config.sections.train import OptimizerConfig
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.models.ranks import rank_count
from textmill.tasks.base import State, Task
from textmill.text.batches import restore_order
from textmill.training.accumulation import Accumulation, MicroBatch
from textmill.training.distributed import gather_all, whole
from textmill.training.memory import BatchSplitter, is_out_of_memory
from textmill.training.optimizer import build_optimizer, build_schedule
from textmill.training.watch import MOST_IN_A_ROW, Watch, write_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

VALIDATION = "validation/"
_MOST_FILES = 50
"""Faulty steps of a training that are written to files."""

log = logging.getLogger("textmill")


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
        splitter: Computes batches in parts where memory is short.
        gradient_norm: Norm of the last step's gradients of all ranks, before clipping; None before the first.
        skips_step: Whether the last step was faulty and left the weights as they were.
    """

    def __init__(
        self,
        task: Task,
        network: nn.Module,
        state: State,
        optimizer: OptimizerConfig,
        orthogonal_dtype: torch.dtype = torch.bfloat16,
        *,
        faults: Path,
        skips_faults: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.validation_metrics: dict[str, float] = {}
        self.outputs: Outputs = {}
        self.accumulation = Accumulation(task, network)
        can_split = self.accumulation.whole_batch_router is None
        self.splitter = BatchSplitter(self.accumulation, task.target_count, self._autocast, can_split=can_split)
        self._task = task
        self._state = state
        self._optimizer = optimizer
        self._orthogonal_dtype = orthogonal_dtype
        self.gradient_norm: Tensor | None = None
        self.skips_step = False
        self._watch = Watch()
        self._faults = faults.parent
        self._faults_prefix = faults.name
        self._skips_faults = skips_faults
        self._outputs: dict[str, list[NDArray[np.float32]]] = {}
        self._losses: list[Tensor] = []
        self._own_batches = 0

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """Return the micro-batch's part of the step's loss; a constant where its gradients were computed in parts."""
        size = self.trainer.accumulate_grad_batches
        self.splitter.begin(batch)
        try:
            if self.splitter.parts == 1:
                return self.accumulation.scaled_loss(batch, size)
            self.splitter.run(size)
        except (RuntimeError, MemoryError) as error:
            self._check_recoverable(error)
            failed = True
        else:
            failed = False
        if failed:  # not within `except`: the error holds the activations
            self._recover()
        return torch.zeros((), device=self.device, requires_grad=True)

    def backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        """Compute the gradients; where memory is short, those of the step's batches in parts."""
        try:
            super().backward(loss, *arguments, **options)
        except (RuntimeError, MemoryError) as error:
            self._check_recoverable(error)
        else:
            return
        loss.detach_()  # Lightning still has it, and with it the activations
        self._recover()

    def _autocast(self) -> AbstractContextManager[None]:
        return self.trainer.precision_plugin.train_step_context()

    def _check_recoverable(self, error: Exception) -> None:
        """Raise an error that smaller batches do not prevent."""
        plugin = self.trainer.precision_plugin
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        if not is_out_of_memory(error) or rank_count() > 1 or scaled:
            raise error

    def _recover(self) -> None:
        size = self.trainer.accumulate_grad_batches
        self.splitter.recover(size, self.global_step, lambda: self.zero_grad(set_to_none=True))

    def optimizer_zero_grad(self, *arguments: Any, **options: Any) -> None:
        """Do nothing: gradients are removed after the step, so that the next one may add some early."""

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Compute the last gradients and take the step; then update the routers."""
        super().optimizer_step(*arguments, **options)
        self.accumulation.end_step(update=not self.skips_step)
        self.zero_grad(set_to_none=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recent losses and gradient norms."""
        checkpoint["watch"] = self._watch.state_dict()
        checkpoint["parts"] = self.splitter.parts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the recent losses and gradient norms."""
        if "watch" in checkpoint:
            self._watch.load_state_dict(checkpoint["watch"])
            self.splitter.parts = checkpoint["parts"]

    def loss_of(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch for another network of the same form, such as a copy."""
        with self.trainer.precision_plugin.train_step_context():
            return self._task.loss(network, batch).loss

    def on_validation_epoch_start(self) -> None:
        """Drop the outputs of an earlier validation."""
        self._outputs, self._losses = {}, []
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self._own_batches = len(data.validation_rows(self.trainer.global_rank))

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Store the network's outputs for the metrics of the whole split."""
        step = self._task.loss(self.network, batch)
        if batch_idx >= self._own_batches:  # only to take part in gathering weights
            return
        self._losses.append(step.loss.detach())
        for name, values in step.outputs.items():
            self._outputs.setdefault(name, []).append(values.detach().float().cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        """Compute the task's metrics from the outputs of all ranks, and log them as `validation/NAME`.

        The metrics are not a number where the loss of a batch is not finite: such outputs must not score.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        chunks: dict[str, list[NDArray[np.float32]]] = {}
        rows: list[NDArray[np.int64]] = []
        for rank, outputs in enumerate(gather_all(self._outputs)):
            rows += data.validation_rows(rank)
            for name, parts in outputs.items():
                chunks.setdefault(name, []).extend(parts)
        self._outputs = {}
        self.outputs = restore_order(chunks, rows)
        finite = not self._losses or bool(torch.stack(self._losses).isfinite().all())
        if all(gather_all(finite)):
            metrics = self._task.validation_metrics(self.outputs, data.validation_columns(), self._state)
        else:
            log.warning("validation at step %d: the outputs are not finite, so they have no metrics", self.global_step)
            names = [*self.validation_metrics, self._task.monitor.removeprefix(VALIDATION), "loss"]
            metrics = dict.fromkeys(names, math.nan)
        self.validation_metrics = metrics
        self.log_dict({VALIDATION + name: value for name, value in metrics.items()}, rank_zero_only=False)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm, and judge the step. Lightning refuses to clip with a fused optimizer, even without a scaler.

        Raises:
            UserError: Loss or gradient is not finite, and such steps are not skipped.
        """
        plugin = self.trainer.precision_plugin
        plain = isinstance(plugin, MixedPrecision) and plugin.scaler is None
        parameters = list(self.parameters() if plain else plugin.main_params(optimizer))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        self.gradient_norm = norm
        self.accumulation.end_window()
        loss, value = torch.stack([self.accumulation.loss.float(), norm.float()]).tolist()  # waits for a GPU once
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None  # which skips infinite gradients
        fault = self._watch.fault(loss, 0.0 if scaled else value)
        self.skips_step = fault is not None and self._handle(fault, loss, value)
        if self.skips_step:
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient does not move

    def _handle(self, fault: str, loss: float, norm: float) -> bool:
        """Write the batches of a faulty step to a file; return whether to skip the step."""
        step, trainer = self.global_step + 1, self.trainer
        path = self._faults / f"{self._faults_prefix}-{step}-{trainer.global_rank}.json"
        facts = {"step": step, "fault": fault, "loss": loss, "gradient_norm": norm}
        if len(list(self._faults.glob(f"{self._faults_prefix}-*"))) < _MOST_FILES:
            write_batches(path, self.accumulation.window, facts)
        finite = math.isfinite(loss) and math.isfinite(norm)
        skip = self._skips_faults and self._watch.in_a_row < MOST_IN_A_ROW
        if not skip and not finite:
            raise UserError(
                f"{fault} at step {step} (its batch: {path})",
                where="train.optimizer",
                fix="Lower learning_rate, lengthen warmup, set trainer.precision to 32-true, "
                "or set train.faulty_steps to skip",
            )
        log.warning("step %d%s: %s (its batch: %s)", step, " is skipped" if skip else "", fault, path)
        return skip

    def configure_optimizers(self) -> Any:
        """Return the optimizer and a schedule over the whole training, stepped with the optimizer."""
        trainer = self.trainer
        fused = trainer.precision != "16-mixed"
        optimizer = build_optimizer(self.network, self._optimizer, fused=fused, orthogonal_dtype=self._orthogonal_dtype)
        steps = trainer.datamodule.optimizer_steps(trainer.max_epochs)  # type: ignore[attr-defined]
        schedule = build_schedule(optimizer, steps, self._optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
