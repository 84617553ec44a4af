"""An encoder with a linear head that scores each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from textmill.models.encoder import linear_head


class TokenScorer(nn.Module):
    """Hidden states, dropout, one linear unit."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(getattr(encoder, "head_dropout", 0.1))
        self.output = linear_head(encoder.hidden_size, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return `scores` (B, T, 1) in float32 from token ids and mask, both (B, T).

        They are NaN at padding, which depends on the batch and must not count as output.
        """
        states = self.encoder(input_ids, attention_mask)
        scores = self.output(self.dropout(states.float())).float()
        return {"scores": scores.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.nan)}
