"""Sentence vectors, and a head that classifies pairs of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from textmill.models.encoder import linear_head, pool


class SentenceEncoder(nn.Module):
    """Vectors (B, D) of length 1, pooled hidden states, whose dot product is the cosine (Reimers & Gurevych 2019)."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = str(getattr(encoder, "pooling", "mean"))
        self.hidden_size: int = encoder.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return `sentence_embedding` (B, D) in float32 from token ids and mask, both (B, T)."""
        states = self.encoder(input_ids, attention_mask)
        return {"sentence_embedding": normalize(pool(states.float(), attention_mask, self.pooling), dim=-1)}


class PairClassifier(SentenceEncoder):
    """A sentence encoder with a linear head over u, v and |u - v| of two texts (Reimers & Gurevych 2019, eq. 1)."""

    def __init__(self, encoder: Any, n_labels: int) -> None:
        super().__init__(encoder)
        self.pair_head = PairHead(self.hidden_size, n_labels, float(getattr(encoder, "head_dropout", 0.1)))


class PairHead(nn.Module):
    """Compute logits (B, C) from the vectors of two texts, both (B, D) and of length 1."""

    output_name = "logits"

    def __init__(self, width: int, n_labels: int, dropout: float) -> None:
        super().__init__()
        # A unit vector has components of about 1 / sqrt(D); a linear layer learns faster from larger ones
        self.scale = math.sqrt(width)
        self.dropout = nn.Dropout(dropout)
        self.output = linear_head(3 * width, n_labels)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the logits of `first` and `second`."""
        features = torch.cat([first, second, (first - second).abs()], dim=-1)
        logits: Tensor = self.output(self.dropout(features * self.scale))
        return logits.float()
