"""An encoder-decoder of the transformers library with the interface of `EncoderDecoder`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from textmill.models.encoder_decoder import shift_right

if TYPE_CHECKING:
    from textmill.config.sections.generation import GenerationConfig


class HubNetwork(nn.Module):
    """A model of the library with the methods of `EncoderDecoder`; `end` is the token that ends a text."""

    def __init__(self, backbone: Any, end: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.end = end
        config = backbone.config
        padding = end if config.pad_token_id is None else int(config.pad_token_id)
        start = getattr(config, "decoder_start_token_id", None)
        self.padding = padding
        self.start = padding if start is None else int(start)

    def likelihood(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """See `EncoderDecoder.likelihood`."""
        logits = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=shift_right(labels, self.start, self.padding),
            use_cache=False,
        ).logits.float()
        flat, targets = logits.flatten(0, 1), labels.flatten()
        each = cross_entropy(flat.detach(), targets, reduction="none").view(labels.shape)
        return cross_entropy(flat, targets, label_smoothing=label_smoothing), each

    @torch.inference_mode()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, options: GenerationConfig) -> list[list[int]]:
        """See `EncoderDecoder.generate`."""
        sampled = options.beams == 1 and options.temperature > 0
        sampling = {"temperature": options.temperature, "top_k": options.top_k or 0, "top_p": options.top_p or 1.0}
        if sampled:
            torch.manual_seed(options.seed)
        sequences = self.backbone.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.beams,
            length_penalty=options.length_penalty,
            repetition_penalty=options.repetition_penalty,
            do_sample=sampled,
            eos_token_id=self.end,
            pad_token_id=self.padding,
            decoder_start_token_id=self.start,
            **(sampling if sampled else {}),
            **({} if options.early_stopping is None else {"early_stopping": options.early_stopping}),
        )
        return [self._strip(row) for row in sequences[:, 1:].tolist()]

    def _strip(self, row: list[int]) -> list[int]:
        """Return the tokens before the end token, without padding."""
        tokens = row[: row.index(self.end)] if self.end in row else row
        return [token for token in tokens if token != self.padding]
