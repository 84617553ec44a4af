"""An encoder-decoder that starts from a pretrained encoder (Rothe et al. 2020, "Leveraging pre-trained checkpoints").

The encoder brings its weights and the embedding of its vocabulary; the decoder above it is new.
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
    """The decoder has the encoder's width and heads, and cross-attention in each layer."""

    name: ClassVar[str] = "warm_start"

    class Config(PretrainedEncoder.Config):
        """Options in `conf/model/`, beside those of the encoder.

        Attributes:
            decoder_layers: New ones.
            decoder_dropout: Of what each of them adds, and of the embeddings.
            max_target_length: Longest target, in tokens.
        """

        decoder_layers: Count = 3
        decoder_dropout: Fraction = 0.1
        max_target_length: Annotated[int, Field(ge=8)] = 128

    config: Config

    def build_encoder_decoder(self, vocabulary_size: int, end: int, pretrained: Path | None) -> EncoderDecoder:
        """See `Model.build_encoder_decoder`; errors are those of `build_encoder`."""
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
