"""The `train` section: model, optimiser, schedule, batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import Fraction, PluginSpec

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]


class OptimizerConfig(Section):
    """The optimizer and its schedule: a warm-up, perhaps a stable part, and a decay.

    Attributes:
        name: `adamw` (Loshchilov & Hutter 2019), or `muon` (Jordan et al. 2024) for the matrices
            within the layers and AdamW for the rest.
        learning_rate: At the schedule's height.
        matrix_learning_rate: Of the matrices that Muon steps; None: `learning_rate`.
        momentum: Of Muon.
        head_multiplier: The head's learning rate is this times the last layer's.
        layer_decay: Each layer's learning rate is this times that of the layer above it.
        weight_decay: Of matrices; vectors have none.
        betas: Of AdamW.
        epsilon: Of AdamW.
        warmup: Share of the steps over which the learning rate rises.
        schedule: What follows: a fall in a line or half a cosine; none; or, for `stable`, none
            until a last share `decay` of all steps, then a line (WSD; Hu et al. 2024).
        decay: See `schedule`.
        final: The share of the learning rate that is left at the end.
        gradient_clip: Largest norm of the gradients.
    """

    name: Literal["adamw", "muon"] = "adamw"
    matrix_learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    momentum: Fraction = 0.95
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    head_multiplier: Annotated[float, Field(gt=0)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    warmup: Fraction = 0.06
    schedule: Literal["linear", "cosine", "constant", "stable"] = "linear"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    final: Fraction = 0.0
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0


class BatchesConfig(Section):
    """Batches of similar lengths.

    Attributes:
        tokens: Of a batch, padding counted.
        max_rows: Of a batch.
        accumulate: Batches whose gradients add up to one step.
        per_epoch: Batches after which an epoch ends, drawn anew from all in each; None takes all.
    """

    tokens: Annotated[int, Field(ge=16)] = 1024
    max_rows: Annotated[int, Field(ge=1)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    per_epoch: Annotated[int, Field(ge=1)] | None = None


class TrainConfig(Section):
    """How the model is trained.

    Attributes:
        seed: Of weights, dropout and order of the data.
        model: The `textmill.models.base.Model` plugin.
        precision: None lets the hardware decide.
        early_stopping: Validations without improvement after which training ends; None never.
        ema_decay: Decay of an exponential moving average of the weights, per step; None for none.
        activation_checkpointing: Keep only what each layer is given and compute the rest again in
            the backward pass: a third slower, with much less memory (Chen et al. 2016).
        compile: Whether torch.compile makes the network's kernels; `auto` tries both on the first
            batch of a GPU and takes the faster.
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
    activation_checkpointing: bool = False
    compile: Literal["auto", "on", "off"] = "off"
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
    precision: Precision | None = None
    deterministic: bool = False
