"""The plan of a training: what it takes, and how far that was off."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from textmill.planning.hardware import HardwareConfig, Load
from textmill.planning.probe import Calibration, calibrate, machine
from textmill.training.footprint import PARTS, Counts, Footprint, largest_batch
from textmill.training.memory import available_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from textmill.config.sections.train import TrainConfig
    from textmill.training.trainer import Training

_CHECKPOINTS = 0.02
"""Share of the steps' time that checkpoints take at most; see `CheckpointWriter`."""
PROCESS = "process"
"""Part of the memory that holds the program, its libraries and the data."""
KERNELS = "kernels"
"""Part that oneDNN keeps for its products in 16 bits: one compiled kernel for each shape, at most 1,024 of them."""
FRAGMENTS = "fragments"
"""Part that the C library has freed and cannot use again: blocks of other sizes, and those of the backward thread."""
# Measured on an AMD EPYC with PyTorch 2.13, on a classifier, a mixture of experts and an encoder-decoder.
_LIBRARIES = 60e6
_KERNEL = 0.9e6
_MOST_KERNELS = 1024
_EVICTED = 0.2  # share of the memory of a kernel beyond these that is not used again
_MOST_EVICTED = 576
_EPOCHS = 10  # epochs whose shapes are counted
_FRAGMENTS = 0.3


@dataclass(frozen=True)
class Work:
    """What a training asks of any machine.

    Attributes:
        counts: Parameters: all, trained, and active for a token.
        steps: Steps of the optimizer.
        positions: Positions of all training batches, with padding.
        flops: Floating-point operations of all steps, without validation.
        flops_per_position: Operations of a position, forward and backward.
        largest: Costs of a step with the batch that needs the most memory.
        half: Costs of a step with half of its rows.
        load: What one step asks of a device.
    """

    counts: Counts
    steps: int
    positions: int
    flops: float
    flops_per_position: float
    largest: Footprint
    half: Footprint
    load: Load


@dataclass(frozen=True)
class Plan:
    """What a training takes on the machine at hand.

    Attributes:
        machine: Name of the device.
        work: What the training asks.
        precision: Number format.
        memory: Bytes at the peak, by part.
        available: Bytes that the machine has for it.
        largest_rows: Rows of the longest batch that fit.
        largest_positions: Positions of a batch that fit.
        calibration: Measured speed.
        startup_seconds: Time until the first step.
        training_seconds: Time of all steps.
        validation_seconds: Time of all validations.
    """

    machine: str
    work: Work
    precision: str
    memory: dict[str, int]
    available: int
    largest_rows: int
    largest_positions: int
    calibration: Calibration
    startup_seconds: float
    training_seconds: float
    validation_seconds: float

    @property
    def seconds(self) -> float:
        """Time of the stage `train`, at most: early stopping may end it before."""
        return self.startup_seconds + self.training_seconds + self.validation_seconds

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())

    def sentence(self) -> str:
        """Return the plan in one line."""
        return f"expects {duration(self.seconds)} and {gigabytes(self.peak)} of memory at the peak on {self.machine}"

    def params(self) -> dict[str, Any]:
        """Return what an MLflow run records of the plan before the training."""
        return {
            "machine": self.machine,
            "parameters": self.work.counts.parameters,
            "active_parameters": self.work.counts.active,
            "flops": f"{self.work.flops:.4g}",
            "seconds": round(self.seconds, 1),
            "peak_memory_mb": round(self.peak / 1e6),
            **{f"memory_mb.{name}": round(size / 1e6, 1) for name, size in self.memory.items()},
        }


def work_of(training: Training, config: TrainConfig) -> Work:
    """Count what a training asks of any machine.

    Three batches are traced; the operations of the others follow from their rows B and length T as p B T + s B T².
    """
    data = training.batches()
    shapes = data.shapes(0)
    lengths = shapes[:, 1]
    chosen = {
        int(np.argmax(_features(shapes)[:, 1])),
        int(lengths.argmin()),
        int(np.argsort(lengths)[len(lengths) // 2]),
    }
    tracer = training.tracer()
    plan = data.plan(0)
    prints = {number: tracer.trace(training.collate("train", plan.batches[number].tolist())) for number in chosen}
    at = max(prints, key=lambda number: prints[number].peak)
    largest = prints[at]
    rows = plan.batches[at].tolist()
    half = tracer.trace(training.collate("train", rows[: max(1, len(rows) // 2)])) if len(rows) > 1 else largest
    coefficients = _fit(_features(shapes[list(prints)]), np.array([prints[number].flops for number in prints], float))
    repeated = 1 + (largest.forward_flops / largest.flops if training.repeats_forward else 0.0)
    of_batches = repeated * _features(shapes) @ coefficients
    steps = data.optimizer_steps(config.max_epochs)
    batches = config.max_epochs * len(shapes)
    flops = float(of_batches.mean()) * batches + steps * largest.optimizer_flops
    positions = float((shapes[:, 0] * lengths).mean()) * batches
    micro = min(config.batches.accumulate, len(shapes))
    load = Load(
        flops=float(of_batches.mean()) * micro,
        kernels=largest.kernels * micro,
        optimizer_flops=largest.optimizer_flops,
        parameter_bytes=float(tracer.counts.trainable * (2 if training.precision == "bf16-true" else 4)),
        state_bytes=float(_state(largest, tracer.counts, training.precision)),
        rest_bytes=float(sum(largest.memory[name] for name in ("activations", "logits", "temporary"))),
        half=training.precision != "32-true",
    )
    return Work(
        tracer.counts, steps, round(positions), flops, float(of_batches.sum() / (shapes[:, 0] * lengths).sum()),
        largest, half, load,
    )  # fmt: skip


def make_plan(training: Training, config: TrainConfig, share: float = 1.0, *, fresh: bool = False) -> Plan:
    """Plan a training on the machine at hand, of one process.

    Args:
        training: The training.
        config: Its `train` section.
        share: Share of the training's time that the probe may take, within its limit.
        fresh: Measure the speed even where it is remembered.
    """
    work = work_of(training, config)
    data = training.batches()
    shapes = data.shapes(0)
    relative = _features(shapes)[:, 0] / max(1.0, float(_features(shapes)[:, 0].mean()))
    batch_flops = (work.flops - work.steps * work.largest.optimizer_flops) / (config.max_epochs * len(shapes))
    resident = psutil.Process().memory_info().rss
    memory: dict[str, int] = dict(work.largest.memory)
    if not torch.cuda.is_available():
        every = np.concatenate([data.shapes(epoch) for epoch in range(min(config.max_epochs, _EPOCHS))])
        memory |= _of_processor(work, resident, _distinct(every), _distinct(data.validation_shapes()))
    total = batch_flops * len(shapes) * config.max_epochs
    speed = calibrate(training, lambda number: batch_flops * float(relative[number]), total, share, fresh=fresh)
    validation = data.validation_shapes()
    positions = float((validation[:, 0] * validation[:, 1]).sum())
    times = config.max_epochs * config.validations_per_epoch
    available = available_memory()
    rows = largest_batch(
        work.half, work.largest, available - sum(memory.get(name, 0) for name in (PROCESS, KERNELS, FRAGMENTS))
    )
    return Plan(
        machine(), work, training.precision, memory, available,
        rows, rows * work.largest.positions // work.largest.rows, speed,
        time.time() - psutil.Process().create_time(),
        (1 + _CHECKPOINTS) * speed.seconds_per_flop * total, times * positions * speed.validation_seconds_per_position,
    )  # fmt: skip


def errors(plan: Plan, seconds: float, peak: int) -> dict[str, float]:
    """Return the plan, what was measured, and the plan's relative errors, as metrics of a run."""
    return {
        "plan/seconds": plan.seconds,
        "plan/actual_seconds": seconds,
        "plan/seconds_error": plan.seconds / seconds - 1,
        "plan/peak_memory_mb": plan.peak / 1e6,
        "plan/actual_peak_memory_mb": peak / 1e6,
        "plan/memory_error": plan.peak / peak - 1,
    }


def measured() -> tuple[float, int]:
    """Return the age of this process in seconds, and the most memory that it has used: of the GPU, or resident."""
    age = time.time() - psutil.Process().create_time()
    if torch.cuda.is_available():
        return age, torch.cuda.max_memory_allocated()
    return age, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def energy(plan: Plan, catalogue: Mapping[str, HardwareConfig]) -> tuple[float, float | None, str] | None:
    """Return kilowatt hours, US dollars and device of the catalogue for the machine at hand; None if it has none.

    A processor counts by its share of threads.
    """
    if torch.cuda.is_available():
        name = next((name for name, each in catalogue.items() if name.upper() in plan.machine.upper().split()), None)
        share = 1.0
    else:
        name = "cpu" if "cpu" in catalogue else None
        share = min(1.0, torch.get_num_threads() / ((catalogue["cpu"].cores or os.cpu_count() or 1) if name else 1))
    if name is None:
        return None
    hours = share * plan.seconds / 3600
    cost = catalogue[name].cost
    return catalogue[name].power * hours / 1000, None if cost is None else cost.per_hour * hours, name


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def gigabytes(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def _of_processor(work: Work, resident: int, shapes: int, validation_shapes: int) -> dict[str, int]:
    """Return what a process on a CPU takes in addition to the tensors, from the numbers of batches' shapes."""
    memory = work.largest.memory
    backward = work.counts.trainable * 4 - memory["gradients"]
    moving = sum(memory[name] for name in ("activations", "logits", "temporary"))
    products = work.largest.products * (shapes + validation_shapes / 3) if work.load.half else 0.0
    kernels = min(_MOST_KERNELS, products) + min(_MOST_EVICTED, _EVICTED * max(0.0, products - _MOST_KERNELS))
    return {
        PROCESS: resident + int(_LIBRARIES),
        KERNELS: int(_KERNEL * kernels),
        FRAGMENTS: int(max(0, backward) + _FRAGMENTS * moving),
    }


def _distinct(shapes: NDArray[np.int64]) -> int:
    return len(np.unique(shapes, axis=0))


def _features(shapes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return B T and B T² of batches (rows, length)."""
    rows, lengths = shapes[:, 0].astype(float), shapes[:, 1].astype(float)
    return np.stack([rows * lengths, rows * lengths**2], axis=1)


def _fit(features: NDArray[np.float64], flops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit two coefficients, relative to each batch's operations; one where the lengths are equal."""
    scaled = features / flops[:, None]
    lengths = features[:, 1] / features[:, 0]
    if np.ptp(lengths) < 1:
        return np.array([1 / scaled[:, 0].mean(), 0.0])
    weights = np.linalg.lstsq(scaled, np.ones(len(flops)), rcond=None)[0]
    if weights.min() < 0:
        return np.array([1 / scaled[:, 0].mean(), 0.0])
    return weights.astype(np.float64)


def _state(largest: Footprint, counts: Counts, precision: str) -> int:
    """Return the bytes of weights, gradients, optimizer and average, all at their full size."""
    gradients = counts.trainable * (2 if precision == "bf16-true" else 4)
    return gradients + sum(largest.memory[name] for name in PARTS[:4] if name != "gradients")


def rounded(value: Any) -> Any:
    """Return plain values with floats of four digits, for a document."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else value
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return value
