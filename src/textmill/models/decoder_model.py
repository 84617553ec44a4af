"""Decoder-only language models of Textmill, trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textmill.models.architecture import Architecture
from textmill.models.base import Model, refuse_pretrained

if TYPE_CHECKING:
    from textmill.models.language_model import LanguageModel


class DecoderModel(Model):
    """A Transformer decoder, dense or with experts; `Config` is its `Architecture`."""

    name: ClassVar[str] = "decoder"

    class Config(Architecture):
        """Options in `conf/model/`: see `Architecture`."""

    config: Config

    def build_decoder(self, vocabulary_size: int, pretrained: Path | None) -> LanguageModel:
        """Build a language model with random weights; see `Model.build_decoder`.

        Raises:
            UserError: There are pretrained weights, which this model cannot load.
        """
        from textmill.models.language_model import LanguageModel

        refuse_pretrained(pretrained)
        return LanguageModel(self.config, vocabulary_size)
