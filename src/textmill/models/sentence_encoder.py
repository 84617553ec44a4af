"""A text as one vector, and a head that judges the vectors of two texts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from textmill.models.encoder import pool

_HEAD_STANDARD_DEVIATION = 0.02


class SentenceEncoder(nn.Module):
    """Pooled hidden states scaled to length 1: the product of two is their cosine (Reimers & Gurevych 2019).

    Args:
        encoder: As `Model.build_encoder` gives it.

    Attributes:
        hidden_size: Width D of the vectors.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = str(getattr(encoder, "pooling", "mean"))
        self.hidden_size: int = encoder.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """`sentence_embedding` (B, D) in float32 from token ids and mask, both (B, T)."""
        states = self.encoder(input_ids, attention_mask)
        return {"sentence_embedding": normalize(pool(states.float(), attention_mask, self.pooling), dim=-1)}


class PairClassifier(SentenceEncoder):
    """A sentence encoder with a linear head over u, v and |u - v| of two texts (Reimers & Gurevych 2019, eq. 1).

    Args:
        encoder: As `Model.build_encoder` gives it.
        n_labels: Classes C.
    """

    def __init__(self, encoder: Any, n_labels: int) -> None:
        super().__init__(encoder)
        self.pair_head = PairHead(self.hidden_size, n_labels, float(getattr(encoder, "head_dropout", 0.1)))


class PairHead(nn.Module):
    """Logits (B, C) for the vectors of two texts, both (B, D) and of length 1."""

    output_name = "logits"

    def __init__(self, width: int, n_labels: int, dropout: float) -> None:
        super().__init__()
        # a vector of length 1 has components of about 1 / sqrt(D); a linear layer learns faster from larger ones
        self.scale = math.sqrt(width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(3 * width, n_labels)
        nn.init.normal_(self.output.weight, std=_HEAD_STANDARD_DEVIATION)
        nn.init.zeros_(self.output.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """See the class."""
        features = torch.cat([first, second, (first - second).abs()], dim=-1)
        logits: Tensor = self.output(self.dropout(features * self.scale))
        return logits.float()
