"""The catalogue of devices in `conf/hardware/`, and what a training takes on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from textmill.config.section import Section
from textmill.errors import UserError, did_you_mean

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Strategy = Literal["ddp", "fsdp"]

_SHARE_FOR_STEPS = 0.9
"""Share of a device's memory that a training may fill; the rest is for the driver and fragments."""


class CostConfig(Section):
    """An example of what one device costs.

    Attributes:
        per_hour: US dollars for one device and hour.
        date: Day or month of the quotation.
        source: Its source.
    """

    per_hour: Annotated[float, Field(ge=0)]
    date: str
    source: str


class HardwareConfig(Section):
    """A kind of device.

    Attributes:
        name: Name of the product.
        bf16: Dense matrix products in bfloat16 (float16 where the device lacks it), in FLOP/s.
        fp32: Matrix products of a training in float32, in FLOP/s.
        memory: Bytes.
        bandwidth: Of the memory, in bytes/s.
        power: Watts.
        efficiency: Share of the peak that a training reaches in large matrix products.
        launch: Seconds that the start of one kernel takes.
        link: Bytes/s, in one direction, between two devices of a host.
        network: Bytes/s of one device to devices of other hosts.
        per_host: Devices of a host.
        latency: Seconds of one message.
        cores: Cores of a processor, of which a machine may have a share; None for a GPU.
        sources: Source of each number.
        cost: An example.
    """

    name: str
    bf16: Positive
    fp32: Positive
    memory: Positive
    bandwidth: Positive
    power: Positive
    efficiency: Annotated[float, Field(gt=0, le=1)] = 0.4
    launch: Annotated[float, Field(ge=0)] = 5e-6
    link: Positive
    network: Positive
    per_host: Annotated[int, Field(ge=1)] = 8
    latency: Annotated[float, Field(ge=0)] = 1e-5
    cores: Annotated[int, Field(ge=1)] | None = None
    sources: dict[str, str]
    cost: CostConfig | None = None

    @property
    def usable(self) -> float:
        """Bytes that a training may fill."""
        return _SHARE_FOR_STEPS * self.memory


@dataclass(frozen=True)
class Load:
    """What one step asks of one device.

    Attributes:
        flops: Floating-point operations of one batch, of all of a step's micro-batches.
        kernels: Kernels that they start.
        optimizer_flops: Operations of the optimizer.
        parameter_bytes: Bytes of the trained parameters' gradients.
        state_bytes: Bytes of weights, gradients, optimizer and average.
        rest_bytes: Bytes of activations, logits and temporary tensors.
        half: Whether products are in a 16-bit format.
    """

    flops: float
    kernels: int
    optimizer_flops: float
    parameter_bytes: float
    state_bytes: float
    rest_bytes: float
    half: bool


@dataclass(frozen=True)
class Forecast:
    """A training on a number of devices.

    Attributes:
        device: Name in the catalogue.
        devices: Number of devices.
        strategy: `ddp` or `fsdp`.
        steps: Steps of the optimizer.
        step_seconds: Time of one step.
        communication_seconds: Part of it in which devices wait for each other.
        seconds: Time of all steps.
        memory: Bytes of one device at the peak.
        fits: Whether its memory suffices.
        kilowatt_hours: Energy of all devices.
        cost: US dollars by the example in the catalogue; None without one.
        cost_date: Date of the example.
    """

    device: str
    devices: int
    strategy: Strategy
    steps: int
    step_seconds: float
    communication_seconds: float
    seconds: float
    memory: float
    fits: bool
    kilowatt_hours: float
    cost: float | None
    cost_date: str | None


def read_catalogue(folder: Path) -> dict[str, HardwareConfig]:
    """Return the devices of `conf/hardware/` by the names of their files.

    Raises:
        UserError: A file is not valid.
    """
    catalogue = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            catalogue[path.stem] = HardwareConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"not a valid device ({reason})", where=str(path), fix="See the other files there"
            ) from error
    return catalogue


def choose_devices(catalogue: dict[str, HardwareConfig], names: list[str]) -> dict[str, HardwareConfig]:
    """Return the named devices, or all without a name.

    Raises:
        UserError: A name is not in the catalogue.
    """
    for name in names:
        if name not in catalogue:
            fix = f"{did_you_mean(name, catalogue)}Allowed: {', '.join(catalogue)}"
            raise UserError(f"{name!r} is not in conf/hardware/", where="--device", fix=fix)
    return {name: catalogue[name] for name in names} if names else catalogue


def forecast(
    name: str, device: HardwareConfig, load: Load, steps: int, devices: int = 1, strategy: Strategy = "ddp"
) -> Forecast:
    """Predict a training from the peak rates of a device.

    A step takes the longest of its products at `efficiency` of the peak, of the starts of its kernels, and of
    the optimizer's traffic. Rows are divided among the devices, so that the number of steps falls.

    - DDP: a ring all-reduce of the gradients, 2 (n - 1) / n of their bytes, runs during the backward pass.
    - FSDP: two all-gathers of the weights and a reduce-scatter of the gradients, 3 (n - 1) / n of their bytes.

    Communication counts as far as it takes longer than the computation that hides it (Rajbhandari et al. 2020).
    """
    rate = device.efficiency * (device.bf16 if load.half else device.fp32)
    traffic = 3 * load.state_bytes / device.bandwidth  # weights, gradients and both moments, read and written
    compute = max(load.flops / rate, load.kernels * device.launch)
    shared = devices if strategy == "fsdp" else 1
    optimizer = load.optimizer_flops / rate + traffic / shared
    wait = 0.0
    if devices > 1:
        bandwidth = device.link if devices <= device.per_host else min(device.link, device.network)
        volume = (3 if strategy == "fsdp" else 2) * (devices - 1) / devices * load.parameter_bytes
        messages = (3 if strategy == "fsdp" else 2) * (devices - 1) * device.latency
        hidden = compute if strategy == "fsdp" else compute * 2 / 3  # the backward pass
        wait = max(0.0, volume / bandwidth + messages - hidden)
    step = compute + optimizer + wait
    count = max(1, math.ceil(steps / devices))
    memory = load.state_bytes / shared + load.rest_bytes
    seconds = count * step
    hours = devices * seconds / 3600
    cost = None if device.cost is None else device.cost.per_hour * hours
    return Forecast(
        name, devices, strategy, count, step, wait, seconds, memory, memory <= device.usable,
        device.power * hours / 1000, cost, None if device.cost is None else device.cost.date,
    )  # fmt: skip
