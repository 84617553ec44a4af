"""The `train` section: model, optimiser, schedule, batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import Fraction, PluginSpec

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019) with a warm-up and a decay."""

    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    head_multiplier: Annotated[float, Field(gt=0)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    warmup: Fraction = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0


class BatchesConfig(Section):
    """Batches of similar lengths. `tokens` counts padding; gradients of `accumulate` batches add up."""

    tokens: Annotated[int, Field(ge=16)] = 1024
    max_rows: Annotated[int, Field(ge=1)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1


class TrainConfig(Section):
    """How the model is trained.

    Attributes:
        seed: Of weights, dropout and order of the data.
        model: The `textmill.models.base.Model` plugin.
        precision: None lets the hardware decide.
        early_stopping: Validations without improvement after which training ends; None never.
        ema_decay: Decay of an exponential moving average of the weights, per step; None for none.
        checkpoint_seconds: Time between two checkpoints within an epoch.
        deterministic: Exact repeatability on GPUs too, at some cost in speed; CPUs have it anyway.
    """

    seed: int
    task: PluginSpec
    model: PluginSpec
    optimizer: OptimizerConfig = OptimizerConfig()
    batches: BatchesConfig = BatchesConfig()
    max_epochs: Annotated[int, Field(ge=1)] = 3
    validations_per_epoch: Annotated[int, Field(ge=1)] = 1
    early_stopping: Annotated[int, Field(ge=1)] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    precision: Precision | None = None
    deterministic: bool = False
