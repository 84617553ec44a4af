"""An encoder-decoder: one stack reads the source, a language model writes about it (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from textmill.models.language_model import LanguageModel
from textmill.models.transformer import Source

if TYPE_CHECKING:
    from textmill.config.sections.generation import GenerationConfig


class EncoderDecoder(nn.Module):
    """Source and target share one vocabulary and its embedding, and the output layer too where `tied`.

    A target begins after the token that ends a text, and ends with it.

    Args:
        decoder: Reads a source.
        encoder: Of the decoder's width.
        end: Id of the token that ends a text.
    """

    def __init__(self, decoder: LanguageModel, encoder: nn.Module, end: int) -> None:
        super().__init__()
        self.end = end
        self.decoder = decoder
        self.encoder = encoder

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's states (B, S, D) of sources (B, S) with padding (mask 0) on the right."""
        embedded = self.decoder.dropout(self.decoder.embedding(input_ids))
        states: Tensor = self.encoder(embedded, input_ids, attention_mask)
        return states

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Source:
        """What the decoder looks at of sources (B, S)."""
        return self.decoder.decoder.look_at(self.encode(input_ids, attention_mask), attention_mask)

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
        from textmill.models.losses.likelihood import mean_cross_entropy

        source = self.read(input_ids, attention_mask)
        hidden = self.decoder.hidden_states(shifted(labels, self.end, self.end), source=source)
        return mean_cross_entropy(hidden.states, self.decoder.output_weight, labels, label_smoothing=label_smoothing)

    @torch.inference_mode()
    def write(self, input_ids: Tensor, attention_mask: Tensor, options: GenerationConfig) -> list[list[int]]:
        """The target that the model writes for each source (B, S): token ids without the end."""
        from textmill.models.generation import write

        prompts: Sequence[Sequence[int]] = [[self.end]] * len(input_ids)
        return write(self.decoder, prompts, options, self.end, source=self.read(input_ids, attention_mask))


class PretrainedSource(EncoderDecoder):
    """The same with an encoder that has an embedding of its own (see `Model.build_encoder`)."""

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See `EncoderDecoder.encode`."""
        states: Tensor = self.encoder(input_ids, attention_mask)
        return states


def shifted(labels: Tensor, start: int, padding: int) -> Tensor:
    """What a decoder is given to predict `labels` (B, T): the same one token later, after `start`."""
    inputs = labels.new_full(labels.shape, start)
    inputs[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] < 0, padding)
    return inputs
