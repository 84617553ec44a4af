"""AdamW with layer-wise learning rates, and its schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from textmill.config.sections.train import OptimizerConfig

MULTIPLIER = "multiplier"
"""Key of a parameter group: its learning rate is the configured one times this."""


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters with their learning rates and weight decay.

    The encoder's last layer has the full learning rate and each group below it `layer_decay` times
    that of the group above (Howard & Ruder 2018); whatever is outside the encoder is the head.
    Vectors (biases, norms) have no weight decay.
    """
    encoder = next((module for module in network.modules() if hasattr(module, "layer_groups")), None)
    layer_groups: Any = getattr(encoder, "layer_groups", list)
    groups: list[list[nn.Parameter]] = layer_groups()
    multipliers = [config.layer_decay ** (len(groups) - 1 - depth) for depth in range(len(groups))]
    inside = {id(parameter) for group in groups for parameter in group}
    groups = [*groups, [parameter for parameter in network.parameters() if id(parameter) not in inside]]
    multipliers.append(config.head_multiplier)
    made = []
    for group, multiplier in zip(groups, multipliers, strict=True):
        trainable = [parameter for parameter in group if parameter.requires_grad]
        for decay, chosen in (
            (config.weight_decay, [parameter for parameter in trainable if parameter.ndim > 1]),
            (0.0, [parameter for parameter in trainable if parameter.ndim <= 1]),
        ):
            if chosen:
                rate = config.learning_rate * multiplier
                made.append({"params": chosen, "lr": rate, "weight_decay": decay, MULTIPLIER: multiplier})
    return made


def build_optimizer(network: nn.Module, config: OptimizerConfig, *, fused: bool = True) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`.

    `fused` must be off where Lightning scales gradients (fp16) and clips them.
    """
    groups = parameter_groups(network, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=fused)


def schedule_factor(step: int, total: int, config: OptimizerConfig) -> float:
    """What the learning rate is multiplied by at optimizer step `step` of `total`.

    Rises in a line over the share `warmup` of the steps, then falls towards 0 in a line or half a
    cosine, or stays.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def build_schedule(optimizer: torch.optim.Optimizer, total: int, config: OptimizerConfig) -> LambdaLR:
    """`schedule_factor` as a scheduler that is stepped once an optimizer step."""
    return LambdaLR(optimizer, lambda step: schedule_factor(step, total, config))


def base_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate now, without the multipliers of the groups."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) / float(group[MULTIPLIER])
