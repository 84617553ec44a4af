"""Low-rank adaptation (Hu et al. 2021, "LoRA") by the peft library."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import Fraction
from textmill.errors import UserError

if TYPE_CHECKING:
    from torch import nn

OPTION = "lora"
"""Key of the options in `conf/model/`."""


class LoraConfig(Section):
    """Options `lora` in `conf/model/`.

    Attributes:
        rank: Rank of each matrix's update, which has rank * (inputs + outputs) weights.
        alpha: The update is multiplied by alpha / rank.
        dropout: Dropout of the update's input.
        targets: Names (last parts) of the linear layers to adapt, such as `query`; None adapts all
            linear layers in the network's stack.
    """

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Fraction = 0.0
    targets: Annotated[list[str], Field(min_length=1)] | None = None


def add_adapters(backbone: nn.Module, config: LoraConfig) -> None:
    """Freeze a model of transformers and add trainable float32 updates to its linear layers, in place.

    Raises:
        UserError: No linear layer has such a name.
    """
    import peft

    names = _linear_layers(backbone)
    wanted = [name for name in names if config.targets is None or name.rpartition(".")[2] in config.targets]
    if not wanted:
        known = sorted({name.rpartition(".")[2] for name in names})
        message = f"no linear layer is named {' or '.join(config.targets or [])}"
        fix = f"Choose from {', '.join(known)}"
        raise UserError(message, where=f"model.{OPTION}.targets", fix=fix)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft detects it
        peft.inject_adapter_in_model(
            peft.LoraConfig(
                r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=wanted, bias="none"
            ),
            backbone,
        )
    for parameter in backbone.parameters():
        if parameter.requires_grad:  # peft gives updates the precision of the weights
            parameter.data = parameter.data.float()


def merge_adapters(network: nn.Module) -> None:
    """Merge every update into its weights and remove the adapters, in place."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__module__.startswith("peft."):
                layer: Any = child
                layer.merge(safe_merge=True)
                setattr(parent, name, layer.get_base_layer())
    for parameter in network.parameters():
        parameter.requires_grad_(True)


def without_adapters(specification: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model plugin and its options without `lora`, as after the merge."""
    return {name: value for name, value in specification.items() if name != OPTION}


def _linear_layers(backbone: nn.Module) -> list[str]:
    """Return the names of the linear layers in the model's stack of layers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    stacks = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        return []
    place, layers = max(stacks, key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))
    return [f"{place}.{name}" for name, module in layers.named_modules() if isinstance(module, nn.Linear | Conv1D)]
