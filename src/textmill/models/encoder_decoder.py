"""An encoder-decoder: one stack reads the source, a language model writes about it (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from textmill.models.architecture import Architecture
from textmill.models.language_model import LanguageModel
from textmill.models.transformer import Encoder, Source

if TYPE_CHECKING:
    from textmill.config.sections.generation import GenerationConfig


class EncoderDecoder(nn.Module):
    """Source and target share one vocabulary and its embedding, and the output layer too where `tied`.

    A target begins after the token that ends a text, and ends with it.

    Args:
        architecture: Of the decoder; the encoder's differs in the number of layers.
        encoder_layers: Of the encoder.
        vocabulary_size: Tokens V.
        end: Id of the token that ends a text.
    """

    def __init__(self, architecture: Architecture, encoder_layers: int, vocabulary_size: int, end: int) -> None:
        super().__init__()
        self.end = end
        self.decoder = LanguageModel(architecture, vocabulary_size, reads_source=True)
        self.encoder = Encoder(architecture.model_copy(update={"n_layers": encoder_layers}))
        self._initialise_encoder()

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Source:
        """What the decoder looks at of sources (B, S) with padding (mask 0) on the right."""
        embedded = self.decoder.dropout(self.decoder.embedding(input_ids))
        states = self.encoder(embedded, input_ids, attention_mask)
        return self.decoder.decoder.look_at(states, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> dict[str, Tensor]:
        """`logits` (B, T, V) of what follows each token (B, T) of the targets."""
        hidden = self.decoder.hidden_states(decoder_input_ids, source=self.read(input_ids, attention_mask))
        return {"logits": nn.functional.linear(hidden.states, self.decoder.output_weight)}

    def likelihood(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of the targets, and each token's negative log-likelihood (B, T) in nats, not smoothed.

        Args:
            input_ids: Sources (B, S).
            attention_mask: 0 at their padding.
            labels: Targets (B, T), each with its end; `IGNORED` at padding.
            label_smoothing: Share of the target spread evenly over the vocabulary (Szegedy et al. 2016).
        """
        from textmill.training.likelihood import mean_cross_entropy

        source = self.read(input_ids, attention_mask)
        hidden = self.decoder.hidden_states(shifted(labels, self.end, self.end), source=source)
        return mean_cross_entropy(hidden.states, self.decoder.output_weight, labels, label_smoothing=label_smoothing)

    @torch.inference_mode()
    def write(self, input_ids: Tensor, attention_mask: Tensor, options: GenerationConfig) -> list[list[int]]:
        """The target that the model writes for each source (B, S): token ids without the end."""
        from textmill.models.generation import write

        prompts: Sequence[Sequence[int]] = [[self.end]] * len(input_ids)
        return write(self.decoder, prompts, options, self.end, source=self.read(input_ids, attention_mask))

    def _initialise_encoder(self) -> None:
        """As `LanguageModel` does, each stack by its own depth."""
        width, layers = self.decoder.architecture.width, len(self.encoder.blocks)
        deviation = math.sqrt(2 / (5 * width))
        for name, parameter in self.encoder.named_parameters():
            if parameter.dim() > 1:
                small = name.endswith(("attention.output.weight", "down.weight"))
                nn.init.normal_(parameter, std=deviation / math.sqrt(2 * layers) if small else deviation)


def shifted(labels: Tensor, start: int, padding: int) -> Tensor:
    """What a decoder is given to predict `labels` (B, T): the same one token later, after `start`."""
    inputs = labels.new_full(labels.shape, start)
    inputs[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] < 0, padding)
    return inputs
