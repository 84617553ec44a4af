# ruff: noqa: ARG002 - Lightning fixes the hooks' parameters
"""Measure the speed of this machine with the first steps of a training; the result is kept for the next time."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from textmill.errors import UserError
from textmill.files import read_optional, write_json
from textmill.training.module import ends_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from textmill.training.trainer import Training

log = logging.getLogger("textmill")

LONGEST = 20.0
"""Seconds that a probe takes at most, apart from the step that runs then."""
_WARM_UP = 3
_FEWEST = 5
_KEPT = 200


@dataclass(frozen=True)
class Calibration:
    """Speed of this machine with one training.

    Attributes:
        seconds_per_flop: Time of the measured steps over their floating-point operations.
        spread: Standard error of `seconds_per_flop`, relative.
        validation_seconds_per_position: Time of a position of the validation split.
        steps: Number of measured steps.
    """

    seconds_per_flop: float
    spread: float
    validation_seconds_per_position: float
    steps: int


class _Clock(Callback):
    """Times the steps of a training after the first ones, then two validation batches, and stops.

    Args:
        training: The training.
        flops: Returns the operations of a batch by its number in the first epoch.
        total_flops: Operations of the whole training.
        share: Share of the expected time of the training that the probe may take, within `LONGEST`.
    """

    def __init__(self, training: Training, flops: Callable[[int], float], total_flops: float, share: float) -> None:
        self._training = training
        self._flops = flops
        self._total = total_flops
        self._share = share
        self._started = self._last = time.perf_counter()
        self._flops_of_step = 0.0
        self.steps: list[tuple[float, float]] = []
        self.validation = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time of a whole step; stop when the time is up."""
        self._flops_of_step += self._flops(batch_idx) if trainer.current_epoch == 0 else 0.0
        if not ends_step(trainer, batch_idx):
            return
        _synchronise()
        now = time.perf_counter()
        if trainer.current_epoch == 0:
            self.steps.append((now - self._last, self._flops_of_step))
        self._last, self._flops_of_step = now, 0.0
        measured = self.steps[_WARM_UP:]
        if len(measured) < _FEWEST and now - self._started < LONGEST and trainer.current_epoch == 0:
            return
        chosen = measured or self.steps[-1:]
        expected = self._total * sum(seconds for seconds, _ in chosen) / max(1.0, sum(flops for _, flops in chosen))
        if now - self._started >= min(LONGEST, self._share * expected) or trainer.current_epoch > 0:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time two validation batches; the first one warms up."""
        batches = self._training.batches().validation_rows(0)
        chosen = [batches[len(batches) // 4], batches[len(batches) // 2]]
        module: Any = pl_module
        module.network.eval()
        for rows in chosen:
            batch = self._training.collate("validation", rows.tolist())
            batch = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
            before = time.perf_counter()
            with torch.no_grad():
                module.loss_of(module.network, batch)
            _synchronise()
            self.validation = (time.perf_counter() - before) / batch["input_ids"].numel()


def calibrate(
    training: Training, flops: Callable[[int], float], total_flops: float, share: float = 1.0, *, fresh: bool = False
) -> Calibration:
    """Return the speed of this training on this machine, as remembered or else as measured now.

    Args:
        training: The training; it runs its first steps, and keeps nothing.
        flops: Returns the operations of a batch by its number in the first epoch.
        total_flops: Operations of the whole training.
        share: Share of the expected time of the training that the probe may take, within `LONGEST`.
        fresh: Measure even where a result is remembered.
    """
    key = json.dumps({"training": training.fingerprint, "machine": machine(), "threads": torch.get_num_threads()})
    path = _memory()
    try:
        known = read_optional(path)
    except UserError:
        known = {}  # damaged: measured again
    if not fresh and isinstance(known.get(key), dict):
        try:
            return Calibration(**known[key])
        except TypeError:
            pass  # written by another version
    clock = _Clock(training, flops, total_flops, share)
    training.probe(clock)
    measured = clock.steps[_WARM_UP:] or clock.steps[-1:]
    seconds, operations = sum(each for each, _ in measured), sum(each for _, each in measured)
    rate = seconds / max(operations, 1.0)
    residuals = sum((each - rate * count) ** 2 for each, count in measured)
    error = (residuals / max(1, len(measured) - 1) * len(measured)) ** 0.5 / max(seconds, 1e-9)
    found = Calibration(rate, error, clock.validation, len(measured))
    kept = dict(list(known.items())[-_KEPT:])
    try:
        write_json(path, {**kept, key: asdict(found)})
    except OSError:
        log.debug("cannot write %s", path)
    return found


def machine() -> str:
    """Return the name of the device that trains here: a GPU, else the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118
    return Path(folder) / "textmill" / "speeds.json"
