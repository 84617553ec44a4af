"""What an architecture must offer to the tasks."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from textmill.config.plugins import Plugin

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class Model(Plugin):
    """An architecture, chosen in `conf/model/`.

    Attributes:
        name: In the field's words.
    """

    name: ClassVar[str]

    @abstractmethod
    def build_encoder(self, pretrained: Path | None) -> torch.nn.Module:
        """An encoder: `forward(input_ids, attention_mask)`, both (B, T), gives hidden states (B, T, D).

        The module has `hidden_size` (D) and `layer_groups()`: its parameters from the input
        upwards, for layer-wise learning rates. `pretrained` is a folder with `config.json` and
        `model.safetensors`; None starts from random weights.
        """
