"""An encoder with a linear head that scores classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from textmill.models.encoder import linear_head, pool


class SequenceClassifier(nn.Module):
    """Pooled hidden states, dropout, one linear layer (Devlin et al. 2019), as the encoder's options say."""

    def __init__(self, encoder: Any, n_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = str(getattr(encoder, "pooling", "mean"))
        self.dropout = nn.Dropout(getattr(encoder, "head_dropout", 0.1))
        self.output = linear_head(encoder.hidden_size, n_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return `logits` (B, C) in float32 from token ids and mask, both (B, T)."""
        states = self.encoder(input_ids, attention_mask)
        vector = pool(states.float(), attention_mask, self.pooling)
        return {"logits": self.output(self.dropout(vector)).float()}
