"""The `train` section: model, optimizer, schedule, batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import Fraction, PluginSpec

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]


class OptimizerConfig(Section):
    """The optimizer and its learning-rate schedule.

    Attributes:
        name: `adamw` (Loshchilov & Hutter 2019), or `muon` (Jordan et al. 2024) for the matrices
            within the layers and AdamW for the rest.
        learning_rate: Peak learning rate.
        matrix_learning_rate: Peak learning rate of the matrices under Muon; None: `learning_rate`.
        momentum: Momentum of Muon.
        head_multiplier: Ratio of the head's learning rate to the last layer's.
        layer_decay: Ratio of each layer's learning rate to that of the layer above it.
        weight_decay: Weight decay of matrices; vectors have none.
        betas: Betas of AdamW.
        epsilon: Epsilon of AdamW.
        warmup: Share of the steps with a rising learning rate.
        schedule: Decay after the warm-up: `linear`, half a `cosine`, or `constant`; `stable` is
            constant until the last share `decay` of all steps, then linear (WSD; Hu et al. 2024).
        decay: Share of decaying steps in the schedule `stable`.
        final: Final learning rate as a share of the peak.
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
    """Batches of rows with similar length.

    Attributes:
        tokens: Largest number of tokens in a batch, padding included; several processes share a batch.
        max_rows: Largest number of rows in a batch.
        accumulate: Number of batches whose gradients form one step, equal to that of one batch of all their rows.
        per_epoch: Number of batches in an epoch, resampled for each epoch; None uses all batches.
    """

    tokens: Annotated[int, Field(ge=16)] = 1024
    max_rows: Annotated[int, Field(ge=1)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    per_epoch: Annotated[int, Field(ge=1)] | None = None


class TrainConfig(Section):
    """Options of training.

    Attributes:
        seed: Seed of weights, dropout and data order.
        precision: Lightning precision; None selects by hardware.
        early_stopping: Number of validations without improvement that ends training; None disables it.
        ema_decay: Decay per step of an exponential moving average of the weights; None disables it.
        activation_checkpointing: Keep only each layer's input and recompute the rest in the backward
            pass: a third slower, with much less memory (Chen et al. 2016).
        compile: Use of torch.compile; `auto` times both on the first batch of a GPU and keeps the faster.
        checkpoint_seconds: Time between two checkpoints within an epoch; None takes as little as keeps their cost
            below two hundredths of the training.
        faulty_steps: Handling of a step whose loss or gradient is not finite or whose gradient is a spike: `stop`
            ends training where it is not finite and reports a spike, `skip` leaves the weights as they were.
            In both cases the batch is written to a file.
        deterministic: Exact repeatability on GPUs, at some cost in speed; CPUs always have it.
        start: `champion` starts from the weights of the model's champion at the time of `fetch`; None starts from
            pretrained or random ones.
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
    checkpoint_seconds: Annotated[float, Field(gt=0)] | None = None
    faulty_steps: Literal["stop", "skip"] = "stop"
    precision: Precision | None = None
    deterministic: bool = False
    start: Literal["champion"] | None = None
