"""Base class of the architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.plugins import Plugin
from textmill.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from textmill.models.language_model import LanguageModel

FROM_FOLDER: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options with which transformers loads a folder: nothing is fetched, and no code that comes with a model runs."""


class Model(Plugin):
    """An architecture, chosen in `conf/model/`; it builds an encoder, a decoder or an encoder-decoder.

    Attributes:
        name: Name of the architecture.
    """

    name: ClassVar[str]

    def build_encoder(self, pretrained: Path | None) -> torch.nn.Module:  # noqa: ARG002 - subclasses use it
        """Build an encoder: `forward(input_ids, attention_mask)`, both (B, T), returns states (B, T, D).

        The module has `hidden_size` (D) and `layer_groups()`: its parameters from the input
        upwards, for layer-wise learning rates. `pretrained` is a folder with `config.json` and
        `model.safetensors`; None starts from random weights.

        Raises:
            UserError: This architecture is not an encoder.
        """
        fix = "Choose an encoder, such as `model: minilm`"
        raise UserError(f"a {self.name} model has no encoder, which this task needs", where="model", fix=fix)

    def build_decoder(self, vocabulary_size: int, pretrained: Path | None) -> LanguageModel:  # noqa: ARG002
        """Build a causal language model over `vocabulary_size` tokens, with the interface of `LanguageModel`.

        `pretrained` is a folder as for `build_encoder`; None starts from random weights.

        Raises:
            UserError: This architecture is not a decoder.
        """
        fix = "Choose a decoder, such as `model: shakespeare_dense`"
        raise UserError(f"a {self.name} model has no decoder, which this task needs", where="model", fix=fix)

    def build_encoder_decoder(self, vocabulary_size: int, end: int, pretrained: Path | None) -> Any:  # noqa: ARG002
        """Build a network that generates text from a source, with the interface of `EncoderDecoder`.

        `end` is the id of the token that ends a text. `pretrained` is a folder as for
        `build_encoder`; None starts from random weights.

        Raises:
            UserError: This architecture is not an encoder-decoder.
        """
        fix = "Choose an encoder-decoder, such as `model: encoder_decoder`"
        raise UserError(f"a {self.name} model is not an encoder-decoder, which this task needs", where="model", fix=fix)


def refuse_pretrained(pretrained: Path | None) -> None:
    """Raise a `UserError` if there are pretrained weights, for a model that cannot load them."""
    if pretrained is not None and (pretrained / "model.safetensors").is_file():
        fix = "Remove it, or choose a model that loads a checkpoint"
        raise UserError("this model cannot load pretrained weights", where="model.pretrained", fix=fix)
