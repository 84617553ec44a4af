"""An encoder with a linear score of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_HEAD_STANDARD_DEVIATION = 0.02


class TokenScorer(nn.Module):
    """Hidden states, dropout, one linear unit.

    Args:
        encoder: As `Model.build_encoder` gives it.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(getattr(encoder, "head_dropout", 0.1))
        self.output = nn.Linear(encoder.hidden_size, 1)
        nn.init.normal_(self.output.weight, std=_HEAD_STANDARD_DEVIATION)
        nn.init.zeros_(self.output.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """`scores` (B, T, 1) in float32 from token ids and mask, both (B, T); NaN at padding.

        How much padding a row has depends on its batch, so nothing there may count as an output.
        """
        states = self.encoder(input_ids, attention_mask)
        scores = self.output(self.dropout(states.float())).float()
        return {"scores": scores.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.nan)}
