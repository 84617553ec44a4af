"""The metrics of every validation, and the weights of the best one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from textmill.errors import name_full_disk
from textmill.files import sha256_file
from textmill.metrics.base import Outputs
from textmill.training.distributed import whole
from textmill.training.loading import storable
from textmill.training.meter import Meter
from textmill.training.module import VALIDATION, TrainingModule

_LOSS = VALIDATION + "loss"
_LOWER_LOSS = 1e-3
"""Relative difference of two losses that is more than rounding."""


class History(Callback):
    """Keeps one row a validation, and the best weights in a file of `folder`.

    The metric `monitor`, with the prefix `validation/`, decides; `mode` is `max` or `min`. Of equal ones the lower
    validation loss decides. A metric that is not finite is never the best.

    Attributes:
        rows: Step, epoch, training loss, learning rate and metrics of each validation.
        best: The best of the rows; None before the first validation.
        outputs: The network's outputs in the best validation; None if an earlier process ran it.
        best_sha256: Digest of the file of the best weights.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, meter: Meter) -> None:
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.outputs: Outputs | None = None
        self.best_sha256: str | None = None
        self._folder = folder
        self._monitor = monitor
        self._sign = 1.0 if mode == "max" else -1.0
        self._meter = meter

    @property
    def best_file(self) -> str | None:
        """File name of the best weights; None before the first validation."""
        return None if self.best is None else f"best-{int(self.best['step']):010d}.safetensors"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row; save the weights if they are the best so far."""
        assert isinstance(pl_module, TrainingModule)
        metrics = {VALIDATION + name: value for name, value in pl_module.validation_metrics.items()}
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        row = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch + done / trainer.num_training_batches,
            "train_loss": self._meter.take_mean_loss(),
            "learning_rate": self._meter.learning_rate,
            **metrics,
        }
        self.rows.append(row)
        is_best = self._is_best(row)
        if is_best:
            self.best = row
            self.outputs = pl_module.outputs
            self._save_weights(trainer)
        self._meter.end_validation(metrics, trainer.global_step, is_best)

    def _is_best(self, row: dict[str, float]) -> bool:
        if not math.isfinite(row[self._monitor]):
            return False
        if self.best is None:
            return True
        gain = self._sign * (row[self._monitor] - self.best[self._monitor])
        loss, before = (one.get(_LOSS, math.nan) for one in (row, self.best))
        return gain > 0 or (gain == 0 and before - loss > _LOWER_LOSS * abs(before))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"rows": self.rows, "best": self.best, "best_sha256": self.best_sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.rows = list(state_dict["rows"])
        self.best = state_dict["best"]
        self.best_sha256 = state_dict.get("best_sha256")

    def _save_weights(self, trainer: Trainer) -> None:
        weights = weights_of(trainer)
        if trainer.is_global_zero and self.best_file:
            partial = self._folder / ".partial.safetensors"
            stored = storable(weights)
            with name_full_disk(partial, sum(each.nbytes for each in stored.values())):
                save_file(stored, partial)
            self.best_sha256 = sha256_file(partial)
            partial.replace(self._folder / self.best_file)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the network's weights, gathered from all ranks. All ranks must call this."""
    gathered = trainer.strategy.lightning_module_state_dict()
    prefix = "network."
    return {name.removeprefix(prefix): whole(each) for name, each in gathered.items() if name.startswith(prefix)}
