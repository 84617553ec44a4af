# ruff: noqa: ARG002 - Lightning fixes the hooks' parameters
"""Loss and speed of every step: checked, shown, and logged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from textmill.errors import UserError
from textmill.training.curve import Curve
from textmill.training.module import TrainingModule, ends_step
from textmill.training.optimizer import base_learning_rate
from textmill.training.progress import Progress

_STEPS_BETWEEN_READINGS = 20
"""Reading a loss waits for the GPU's queue, so that the losses of several steps are read at once."""


class MetricLog(Protocol):
    """A log of training metrics, such as an MLflow run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of a step."""


class Meter(Callback):
    """Counts samples, tokens and seconds, reads the losses, and logs each step's `metrics`; None logs nothing.

    Attributes:
        samples: Training rows so far, of all ranks.
        tokens: Training tokens so far without padding, of all ranks.
        seconds: Training time so far, without validation.
        learning_rate: Learning rate of the last step, without the groups' multipliers.
        padding: Padding share of each epoch that began.
        skipped: Faulty steps that did not move the weights.
        curve: The loss over the steps.
    """

    def __init__(self, metrics: MetricLog | None, progress: Progress) -> None:
        self.samples = 0
        self.tokens = 0
        self.seconds = 0.0
        self.learning_rate = 0.0
        self.padding: dict[int, float] = {}
        self.skipped = 0
        self.curve = Curve()
        self._metrics = metrics
        self._progress = progress
        self._unread: list[_Step] = []
        self._tokens_before = 0
        self._loss_sum = 0.0
        self._loss_count = 0
        self._clock = 0.0

    # -- for History ------------------------------------------------------------------------

    def take_mean_loss(self) -> float:
        """Return the mean training loss over the steps since the last call."""
        mean = self._loss_sum / self._loss_count if self._loss_count else math.nan
        self._loss_sum, self._loss_count = 0.0, 0
        return mean

    def end_validation(self, metrics: Mapping[str, float], step: int, is_best: bool) -> None:
        """Show and log a validation's metrics, and restart the clock of training."""
        if self._metrics is not None:
            self._metrics.log_metrics(metrics, step)
        self._progress.show_validation(metrics, is_best)
        self._clock = time.perf_counter()

    # -- hooks ------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the total number of samples."""
        total = trainer.datamodule.rows() * (trainer.max_epochs or 1)  # type: ignore[attr-defined]
        self._progress.begin(total, self.samples)
        self.curve.begin(trainer.datamodule.optimizer_steps(trainer.max_epochs))  # type: ignore[attr-defined]
        self._clock = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the padding of the epoch's plan."""
        epoch = trainer.current_epoch
        if epoch in self.padding:  # logged before the training was resumed
            return
        self.padding[epoch] = trainer.datamodule.plan(epoch).padding_share  # type: ignore[attr-defined]
        if self._metrics is not None:
            self._metrics.log_metrics({"train/padding_share": self.padding[epoch]}, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Store the learning rate of the step."""
        self.learning_rate = base_learning_rate(trainer.optimizers[0])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and read the losses of the steps if due."""
        plan = trainer.datamodule.plan(trainer.current_epoch)  # type: ignore[attr-defined]
        self.samples += len(plan.batches[batch_idx])
        self.tokens += plan.tokens[batch_idx]
        if not ends_step(trainer, batch_idx):
            return
        assert isinstance(pl_module, TrainingModule)
        step = pl_module.accumulation
        loss, tokens = step.loss, self.tokens - self._tokens_before
        self._tokens_before = self.tokens
        if pl_module.skips_step:
            self.skipped += 1
            if self._metrics is not None:
                self._metrics.log_metrics({"train/skipped_steps": self.skipped}, trainer.global_step)
            return
        terms = dict(step.terms)
        if pl_module.gradient_norm is not None:
            terms["gradient_norm"] = pl_module.gradient_norm
        self._unread.append(_Step(trainer.global_step, loss, self.learning_rate, tokens, terms))
        if loss.device.type == "cpu" or len(self._unread) >= _STEPS_BETWEEN_READINGS:
            self.read()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the remaining losses, which also stops the clock of training."""
        self.read()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the remaining losses, and end the display."""
        self.read()
        self._progress.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the display."""
        self._progress.end()

    def read(self) -> None:
        """Copy the losses from the device; check, sum, log and show them.

        Raises:
            UserError: A loss is infinite or not a number.
        """
        if not self._unread:
            return
        losses = torch.stack([step.loss for step in self._unread]).float().tolist()
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        self.seconds += elapsed
        speed = sum(step.tokens for step in self._unread) / max(elapsed, 1e-9)
        for step, loss in zip(self._unread, losses, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"the training loss is {loss} at step {step.number}",
                    where="train.optimizer",
                    fix="Lower learning_rate, lengthen warmup, or set trainer.precision to 32-true",
                )
            self._loss_sum += loss
            self._loss_count += 1
            self.curve.add(step.number, loss, step.rate)
            if self._metrics is not None:
                values = {"train/loss": loss, "train/learning_rate": step.rate, "train/tokens_per_second": speed}
                values |= {f"train/{name}": float(term) for name, term in step.terms.items()}
                self._metrics.log_metrics(values, step.number)
        self._unread = []
        self._progress.advance(self.samples, losses[-1], self.tokens)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        self.read()
        return {name: getattr(self, name) for name in _STATE} | {"curve": self.curve.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        for name in _STATE:
            setattr(self, name, state_dict[name])
        self._tokens_before = self.tokens
        self.curve.load_state_dict(state_dict["curve"])


_STATE = ("samples", "tokens", "seconds", "padding", "skipped", "_loss_sum", "_loss_count")


@dataclass(frozen=True)
class _Step:
    number: int
    loss: Tensor
    rate: float
    tokens: int
    terms: dict[str, Tensor]
