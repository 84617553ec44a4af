"""What an architecture may offer to the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.plugins import Plugin
from textmill.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from textmill.models.language_model import LanguageModel


class Model(Plugin):
    """An architecture, chosen in `conf/model/`.

    It offers what it can be: an encoder, a decoder, both or the two in one. A task asks for the one it needs.

    Attributes:
        name: In the field's words.
    """

    name: ClassVar[str]

    def build_encoder(self, pretrained: Path | None) -> torch.nn.Module:  # noqa: ARG002 - subclasses use it
        """An encoder: `forward(input_ids, attention_mask)`, both (B, T), gives hidden states (B, T, D).

        The module has `hidden_size` (D) and `layer_groups()`: its parameters from the input
        upwards, for layer-wise learning rates. `pretrained` is a folder with `config.json` and
        `model.safetensors`; None starts from random weights.

        Raises:
            UserError: This architecture is no encoder.
        """
        raise UserError(
            f"a {self.name} model has no encoder, which this task needs",
            where="model",
            fix="Choose an encoder, such as `model: minilm`",
        )

    def build_decoder(self, vocabulary_size: int, pretrained: Path | None) -> LanguageModel:  # noqa: ARG002
        """A causal language model over `vocabulary_size` tokens, with the interface of `LanguageModel`.

        `pretrained` is a folder as for `build_encoder`; None starts from random weights.

        Raises:
            UserError: This architecture is no decoder.
        """
        raise UserError(
            f"a {self.name} model has no decoder, which this task needs",
            where="model",
            fix="Choose a decoder, such as `model: shakespeare_dense`",
        )

    def build_encoder_decoder(self, vocabulary_size: int, end: int, pretrained: Path | None) -> Any:  # noqa: ARG002
        """A network that writes about a source, with `likelihood` and `write` of `EncoderDecoder`.

        `end` is the id of the token that ends a text. `pretrained` is a folder as for
        `build_encoder`; None starts from random weights.

        Raises:
            UserError: This architecture is no encoder-decoder.
        """
        raise UserError(
            f"a {self.name} model does not write about a source, which this task needs",
            where="model",
            fix="Choose an encoder-decoder, such as `model: encoder_decoder`",
        )
