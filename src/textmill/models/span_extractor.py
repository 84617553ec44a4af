"""An encoder with a head that scores where a passage begins and ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_HEAD_STANDARD_DEVIATION = 0.02


class SpanExtractor(nn.Module):
    """Two scores for each token: how well the answer begins with it, and ends with it (Devlin et al. 2019).

    The first token stands for "no answer". `no_answer_bias` is added to both of its scores; it is
    not trained but set afterwards, to what serves best on validation.

    Args:
        encoder: As `Model.build_encoder` gives it.
    """

    no_answer_bias: Tensor

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(getattr(encoder, "head_dropout", 0.1))
        self.output = nn.Linear(encoder.hidden_size, 2)
        nn.init.normal_(self.output.weight, std=_HEAD_STANDARD_DEVIATION)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("no_answer_bias", torch.zeros(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """`start_logits` and `end_logits`, both (B, T) in float32 and NaN at padding, from ids and mask (B, T)."""
        states = self.encoder(input_ids, attention_mask).float()
        # As rows of one matrix, so that the exported graph has a Gemm here, which int8 leaves exact
        logits = self.output(self.dropout(states).flatten(0, 1)).float().unflatten(0, input_ids.shape)
        first = torch.arange(input_ids.shape[1], device=input_ids.device) == 0
        logits = logits + torch.where(first, self.no_answer_bias, 0.0).unsqueeze(-1)
        logits = logits.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.nan)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
