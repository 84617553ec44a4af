"""An encoder-decoder with a pretrained encoder (Rothe et al. 2020, "Leveraging pre-trained checkpoints").

Encoder and embedding have pretrained weights; the decoder starts from random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.types import Fraction
from textmill.models.architecture import Architecture, Count
from textmill.models.pretrained_encoder import WEIGHTS_FILE, PretrainedEncoder

if TYPE_CHECKING:
    from textmill.models.encoder_decoder import EncoderDecoder


class WarmStart(PretrainedEncoder):
    """A pretrained encoder and a decoder of the same width and heads that attends to it."""

    name: ClassVar[str] = "warm_start"

    class Config(PretrainedEncoder.Config):
        """Options in `conf/model/`, in addition to the encoder's.

        Attributes:
            decoder_layers: Layers of the decoder.
            decoder_dropout: Dropout of the decoder's residual branches and of the embeddings.
            max_target_length: Maximum length of a target, in tokens.
        """

        decoder_layers: Count = 3
        decoder_dropout: Fraction = 0.1
        max_target_length: Annotated[int, Field(ge=8)] = 128

    config: Config

    def build_encoder_decoder(self, vocabulary_size: int, end: int, pretrained: Path | None) -> EncoderDecoder:
        """Build the network; see `Model.build_encoder_decoder` and the errors of `build_encoder`."""
        import torch

        from textmill.models.encoder_decoder import PretrainedSource
        from textmill.models.language_model import LanguageModel

        encoder: Any = self.build_encoder(pretrained)
        backbone = encoder.config
        decoder = LanguageModel(
            Architecture(
                n_layers=self.config.decoder_layers,
                n_heads=backbone.num_attention_heads,
                width=backbone.hidden_size,
                max_length=self.config.max_target_length,
                dropout=self.config.decoder_dropout,
            ),
            vocabulary_size,
            reads_source=True,
        )
        if pretrained is not None and (pretrained / WEIGHTS_FILE).is_file():
            known = encoder.backbone.get_input_embeddings().weight
            with torch.no_grad():
                decoder.embedding.weight[: len(known)] = known[:vocabulary_size]
        return PretrainedSource(decoder, encoder, end)
