"""An encoder with a head that scores the start and the end of a passage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from textmill.models.encoder import linear_head


class SpanExtractor(nn.Module):
    """Score each token as start and as end of the answer (Devlin et al. 2019).

    The first token stands for "no answer". `no_answer_bias` is added to both of its scores. It is
    not trained, but calibrated on the validation split.
    """

    no_answer_bias: Tensor

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(getattr(encoder, "head_dropout", 0.1))
        self.output = linear_head(encoder.hidden_size, 2)
        self.register_buffer("no_answer_bias", torch.zeros(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return `start_logits` and `end_logits`, (B, T) in float32, NaN at padding, from ids and mask (B, T)."""
        states = self.encoder(input_ids, attention_mask).float()
        # As rows of one matrix, so that the exported graph has a Gemm, which int8 quantisation leaves exact
        logits = self.output(self.dropout(states).flatten(0, 1)).float().unflatten(0, input_ids.shape)
        first = torch.arange(input_ids.shape[1], device=input_ids.device) == 0
        logits = logits + torch.where(first, self.no_answer_bias, 0.0).unsqueeze(-1)
        logits = logits.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.nan)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
