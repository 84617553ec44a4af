"""Encoder-decoder models of Textmill, trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator

from textmill.models.architecture import Architecture, Count
from textmill.models.base import Model, refuse_pretrained

if TYPE_CHECKING:
    from textmill.models.encoder_decoder import EncoderDecoder


class EncoderDecoderModel(Model):
    """A Transformer encoder and a decoder that attends to it, both with the width and heads of the options."""

    name: ClassVar[str] = "encoder_decoder"

    class Config(Architecture):
        """Options in `conf/model/`: `Architecture`, and the layers of the encoder (None: `n_layers`)."""

        n_encoder_layers: Count | None = None

        @model_validator(mode="after")
        def _is_dense(self) -> Self:
            if self.feed_forward != "dense":
                raise ValueError("an encoder-decoder has no experts; set feed_forward to dense")
            return self

    config: Config

    def build_encoder_decoder(self, vocabulary_size: int, end: int, pretrained: Path | None) -> EncoderDecoder:
        """Build an encoder-decoder with random weights; see `Model.build_encoder_decoder`.

        Raises:
            UserError: There are pretrained weights, which this model cannot load.
        """
        from textmill.models.encoder_decoder import EncoderDecoder
        from textmill.models.language_model import LanguageModel
        from textmill.models.transformer import Encoder

        refuse_pretrained(pretrained)
        decoder = LanguageModel(self.config, vocabulary_size, reads_source=True)
        layers = self.config.n_encoder_layers or self.config.n_layers
        return EncoderDecoder(decoder, Encoder(self.config.model_copy(update={"n_layers": layers})), end)
