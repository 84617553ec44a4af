"""AdamW with layer-wise learning rates, or Muon with AdamW, and the schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from textmill.config.sections.train import OptimizerConfig
from textmill.models.routing.base import Router
from textmill.training.layers import layer_stack
from textmill.training.muon import ORTHOGONAL, Muon

MULTIPLIER = "multiplier"
"""Key of a parameter group: the factor of its learning rate."""


def parameter_groups(network: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the trainable parameters with their learning rates and weight decay.

    The encoder's last layer has the full learning rate, and each group below has `layer_decay` times that of
    the group above (Howard & Ruder 2018). Parameters outside the encoder are the head. Vectors (biases, norms)
    have no weight decay. Muon has its own groups of matrices and stacks of matrices within the layers, without
    embeddings, output layer and routers.
    """
    hidden = _hidden_matrices(network) if config.name == "muon" else set()
    encoder = next((module for module in network.modules() if hasattr(module, "layer_groups")), None)
    layer_groups: Any = getattr(encoder, "layer_groups", list)
    groups: list[list[nn.Parameter]] = layer_groups()
    multipliers = [config.layer_decay ** (len(groups) - 1 - depth) for depth in range(len(groups))]
    inside = {id(parameter) for group in groups for parameter in group}
    groups = [*groups, [parameter for parameter in network.parameters() if id(parameter) not in inside]]
    multipliers.append(config.head_multiplier)
    result = []
    for group, multiplier in zip(groups, multipliers, strict=True):
        trainable = [parameter for parameter in group if parameter.requires_grad]
        for decay, orthogonal, chosen in (
            (config.weight_decay, False, [p for p in trainable if p.ndim > 1 and id(p) not in hidden]),
            (0.0, False, [p for p in trainable if p.ndim <= 1]),
            (config.weight_decay, True, [p for p in trainable if id(p) in hidden]),
        ):
            if chosen:
                own = config.matrix_learning_rate if orthogonal else None
                factor = multiplier * (own or config.learning_rate) / config.learning_rate
                rate = config.learning_rate * factor
                result.append({"params": chosen, "lr": rate, "weight_decay": decay, MULTIPLIER: factor})
                result[-1] |= {ORTHOGONAL: True} if orthogonal else {}
    return result


def _hidden_matrices(network: nn.Module) -> set[int]:
    """Return the ids of the matrices in the network's layers, without embeddings and routers."""
    inside = {id(p) for layer in layer_stack(network) for p in layer.parameters() if p.ndim > 1}
    apart = [module for module in network.modules() if isinstance(module, nn.Embedding | Router)]
    return inside - {id(p) for module in apart for p in module.parameters()}


def build_optimizer(
    network: nn.Module, config: OptimizerConfig, *, fused: bool = True, orthogonal_dtype: torch.dtype = torch.bfloat16
) -> torch.optim.AdamW:
    """Return the configured optimizer of `parameter_groups`.

    `fused` must be off where Lightning scales gradients (fp16) and clips them. `orthogonal_dtype` is the format of
    Muon's orthogonalisation.
    """
    groups = parameter_groups(network, config)
    options: Any = {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon, "fused": fused}
    if config.name == "muon":
        return Muon(groups, momentum=config.momentum, dtype=orthogonal_dtype, **options)
    return torch.optim.AdamW(groups, **options)


def schedule_factor(step: int, total: int, config: OptimizerConfig) -> float:
    """Return the factor of the learning rate at optimizer step `step` of `total`.

    It rises linearly over the share `warmup` of the steps, then follows `schedule` to `final`.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    start = max(warmup, total - round(config.decay * total)) if config.schedule == "stable" else warmup
    done = min(1.0, max(0, step - start) / max(1, total - start))
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.final + (1 - config.final) * left


def build_schedule(optimizer: torch.optim.Optimizer, total: int, config: OptimizerConfig) -> LambdaLR:
    """Return `schedule_factor` as a scheduler of optimizer steps."""
    return LambdaLR(optimizer, lambda step: schedule_factor(step, total, config))


def base_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the current learning rate, without the multipliers of the groups."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) / float(group[MULTIPLIER])
