"""Decoder-only language models of our own, trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textmill.errors import UserError
from textmill.models.architecture import Architecture
from textmill.models.base import Model

if TYPE_CHECKING:
    from textmill.models.language_model import LanguageModel


class DecoderModel(Model):
    """A Transformer decoder, dense or with experts; `Config` is its `Architecture`."""

    name: ClassVar[str] = "decoder"

    class Config(Architecture):
        """Options in `conf/model/`: see `Architecture`."""

    config: Config

    def build_decoder(self, vocabulary_size: int, pretrained: Path | None) -> LanguageModel:
        """A language model with fresh weights (see `Model.build_decoder`).

        Raises:
            UserError: There is a folder of pretrained weights, which this model cannot take.
        """
        from textmill.models.language_model import LanguageModel

        if pretrained is not None and (pretrained / "model.safetensors").is_file():
            raise UserError(
                "this model starts from fresh weights and cannot take pretrained ones",
                where="model.pretrained",
                fix="Leave it out, or choose a model that loads a checkpoint",
            )
        return LanguageModel(self.config, vocabulary_size)
