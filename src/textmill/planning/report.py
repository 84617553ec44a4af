"""The document of `textmill plan`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from textmill.config import resolved
from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.planning.hardware import Forecast, HardwareConfig, choose_devices, forecast, read_catalogue
from textmill.planning.optimal import optimum
from textmill.planning.plan import Plan, Work, energy, make_plan, rounded, work_of
from textmill.training.trainer import Training

_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def report(
    layout: Layout,
    overrides: list[str],
    devices: list[str],
    most: int = 1024,
    *,
    tokens: float | None = None,
    budget: float | None = None,
    probe: bool = True,
    fresh: bool = False,
) -> tuple[dict[str, Any], Plan | None]:
    """Plan the training of a configuration; return the document, and the plan on this machine with `probe`.

    Args:
        layout: The project, with prepared data.
        overrides: Overrides of Hydra.
        devices: Names of the catalogue; none stands for all.
        most: Largest number of devices.
        tokens: Positions of the training, in place of those of the prepared data.
        budget: Floating-point operations for the optimal size; None: those of this training.
        probe: Whether to measure this machine.
        fresh: Whether to measure it even where the speed is remembered.

    Raises:
        UserError: The configuration is not valid, or the data was prepared with other settings.
    """
    catalogue = choose_devices(read_catalogue(layout.conf / "hardware"), devices)
    config = compose(layout, overrides)
    prepared = Prepared(layout.prepared)
    if layout.resolved.is_file() and resolved.read(layout.resolved).prepare != config.prepare:
        fix = "Set the experiment in params.yaml and run `dvc repro prepare`"
        raise UserError("the data was prepared with other settings", where=str(layout.prepared), fix=fix)
    training = Training(config.train, config.runtime, prepared, layout.pretrained, layout.checkpoints)
    made = make_plan(training, config.train, fresh=fresh) if probe and training.ranks == 1 else None
    work = made.work if made is not None else work_of(training, config.train)
    if tokens is not None:
        factor = tokens / work.positions
        work = replace(
            work, steps=max(1, round(work.steps * factor)), positions=round(tokens), flops=work.flops * factor
        )
        if made is not None:
            scaled = made.training_seconds * factor
            made = replace(made, work=work, training_seconds=scaled)
    document: dict[str, Any] = {
        "work": {
            "parameters": work.counts.parameters,
            "active_parameters": work.counts.active,
            "trainable_parameters": work.counts.trainable,
            "steps": work.steps,
            "positions": work.positions,
            "flops_per_position": work.flops_per_position,
            "flops": work.flops,
        },
        "memory": made.memory if made is not None else work.largest.memory,
        "here": None if made is None else _here(made, layout),
        "forecasts": [asdict(each) for each in _forecasts(catalogue, work, most)],
        "optimum": asdict(optimum(budget or work.flops)) if "vocabulary_size" in prepared.state else None,
    }
    return rounded(document), made


def _here(made: Plan, layout: Layout) -> dict[str, Any]:
    found = energy(made, read_catalogue(layout.conf / "hardware"))
    return {
        "machine": made.machine,
        "precision": made.precision,
        "seconds": made.seconds,
        "startup_seconds": made.startup_seconds,
        "training_seconds": made.training_seconds,
        "validation_seconds": made.validation_seconds,
        "available_memory": made.available,
        "largest_rows": made.largest_rows,
        "largest_positions": made.largest_positions,
        "calibration": asdict(made.calibration),
        "kilowatt_hours": found and found[0],
        "cost": found and found[1],
        "energy_device": found and found[2],
    }


def _forecasts(catalogue: dict[str, HardwareConfig], work: Work, most: int) -> list[Forecast]:
    """Return one device of each kind under DDP, and more devices of the GPUs under both strategies."""
    found = []
    for name, device in catalogue.items():
        found.append(forecast(name, device, work.load, work.steps))
        if device.cores is None:
            counts = [count for count in _COUNTS if 1 < count <= min(most, work.steps)]
            found += [
                forecast(name, device, work.load, work.steps, count, strategy)
                for count in counts
                for strategy in ("ddp", "fsdp")
            ]
    return found
