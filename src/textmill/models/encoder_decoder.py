"""An encoder-decoder (Vaswani et al. 2017)."""

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
    """An encoder and a language model that attends to its states.

    Source and target share the vocabulary and its embedding, with `tied` also the output layer.
    The token `end` is both first and last token of a target.
    """

    def __init__(self, decoder: LanguageModel, encoder: nn.Module, end: int) -> None:
        super().__init__()
        self.end = end
        self.decoder = decoder
        self.encoder = encoder

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the encoder's states (B, S, D) of sources (B, S), padded (mask 0) on the right."""
        embedded = self.decoder.dropout(self.decoder.embedding(input_ids))
        states: Tensor = self.encoder(embedded, input_ids, attention_mask)
        return states

    def read_source(self, input_ids: Tensor, attention_mask: Tensor) -> Source:
        """Return the keys and values of sources (B, S) for the decoder."""
        return self.decoder.decoder.project_source(self.encode(input_ids, attention_mask), attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> dict[str, Tensor]:
        """Return `logits` (B, T, V) of the token after each target token (B, T)."""
        hidden = self.decoder.hidden_states(decoder_input_ids, source=self.read_source(input_ids, attention_mask))
        return {"logits": nn.functional.linear(hidden.states, self.decoder.output_weight)}

    def likelihood(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the targets, and each token's unsmoothed negative log-likelihood (B, T) in nats.

        Targets `labels` (B, T) have the end token and are `IGNORED` at padding. `label_smoothing` is the
        share of a target spread evenly over the vocabulary (Szegedy et al. 2016).
        """
        from textmill.models.losses.likelihood import mean_cross_entropy

        source = self.read_source(input_ids, attention_mask)
        hidden = self.decoder.hidden_states(shift_right(labels, self.end, self.end), source=source)
        return mean_cross_entropy(hidden.states, self.decoder.output_weight, labels, label_smoothing=label_smoothing)

    @torch.inference_mode()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, options: GenerationConfig) -> list[list[int]]:
        """Generate the target of each source (B, S): token ids without the end token."""
        from textmill.models.generation import generate_tokens

        prompts: Sequence[Sequence[int]] = [[self.end]] * len(input_ids)
        source = self.read_source(input_ids, attention_mask)
        return generate_tokens(self.decoder, prompts, options, self.end, source=source)


class PretrainedSource(EncoderDecoder):
    """An encoder-decoder whose encoder has its own embedding (see `Model.build_encoder`)."""

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See `EncoderDecoder.encode`."""
        states: Tensor = self.encoder(input_ids, attention_mask)
        return states


def shift_right(labels: Tensor, start: int, padding: int) -> Tensor:
    """Return the decoder's inputs for `labels` (B, T): the labels one position later, after `start`."""
    inputs = labels.new_full(labels.shape, start)
    inputs[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] < 0, padding)
    return inputs
