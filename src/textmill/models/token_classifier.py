"""An encoder with a linear head that scores the classes of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from textmill.models.encoder import linear_head


class TokenClassifier(nn.Module):
    """Hidden states, dropout, one linear layer (Devlin et al. 2019)."""

    def __init__(self, encoder: Any, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(getattr(encoder, "head_dropout", 0.1))
        self.output = linear_head(encoder.hidden_size, n_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return `logits` (B, T, C) in float32, NaN at padding, from token ids and mask, both (B, T)."""
        states = self.encoder(input_ids, attention_mask).float()
        # As rows of one matrix, so that the exported graph has a Gemm, which int8 quantisation leaves exact
        logits = self.output(self.dropout(states).flatten(0, 1)).float().unflatten(0, input_ids.shape)
        return {"logits": logits.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.nan)}
