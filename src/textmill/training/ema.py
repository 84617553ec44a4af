# ruff: noqa: ARG002 - Lightning fixes the hooks' parameters
"""An exponential moving average of the weights, for validation and the result."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from textmill.training.distributed import as_divided, local

_WARMUP = 10


class ExponentialMovingAverage(Callback):
    """Averages the trainable weights over the optimizer's steps (Polyak & Juditsky 1992).

    The decay per step rises with the number of steps, as min(decay, (1 + n) / (10 + n)), so that the average soon
    forgets the initial weights. During validation the network has the averaged weights; callbacks that save
    them must come before this one in the trainer's list. Lightning's `WeightAveraging` copies and averages
    the frozen weights too, and has no rising decay.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._average: list[Tensor] = []
        self._current: list[Tensor] = []
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the current weights, or move a resumed average to the device."""
        parameters = _trainable(pl_module)
        if self._average:
            self._average = [as_divided(p, average) for average, p in zip(self._average, parameters, strict=True)]
        else:
            self._average = [parameter.clone() for parameter in parameters]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after a step of the optimizer."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        decay = min(self._decay, (1 + self._steps) / (_WARMUP + self._steps))
        torch._foreach_lerp_(_local(self._average), _local(_trainable(pl_module)), 1 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the network's weights by the average."""
        parameters = _local(_trainable(pl_module))
        self._current = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, _local(self._average))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the network's weights."""
        torch._foreach_copy_(_local(_trainable(pl_module)), self._current)
        self._current = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"average": self._average, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._average = list(state_dict["average"])
        self._steps = int(state_dict["steps"])


def _trainable(module: LightningModule) -> list[Tensor]:
    return [parameter.detach() for parameter in module.parameters() if parameter.requires_grad]


def _local(tensors: list[Tensor]) -> list[Tensor]:
    return [local(tensor) for tensor in tensors]
