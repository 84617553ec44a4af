"""Encoders with a head that predicts a number, or the rank of an ordered class, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from textmill.models.encoder import linear_head, pool

_LOG_SCALE = 5.0
"""Largest absolute logarithm of a predicted scale: beyond it a squared error overflows in half precision."""


class Regressor(nn.Module):
    """Predict a number from pooled hidden states, in the unit of the training split's standard deviation.

    `quantile` scales the intervals. It is not trained, but calibrated on the validation split.

    Args:
        encoder: Result of `Model.build_encoder`.
        heteroscedastic: Whether the scale is predicted too, as in Nix & Weigend (1994); else it is 1.
    """

    quantile: Tensor

    def __init__(self, encoder: Any, *, heteroscedastic: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = str(getattr(encoder, "pooling", "mean"))
        self.dropout = nn.Dropout(getattr(encoder, "head_dropout", 0.1))
        self.heteroscedastic = heteroscedastic
        self.output = linear_head(encoder.hidden_size, 1 + heteroscedastic)
        self.register_buffer("quantile", torch.ones(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return `location`, `scale` and `radius`, half the interval, all (B,), from ids and mask, both (B, T)."""
        states = self.encoder(input_ids, attention_mask)
        values = self.output(self.dropout(pool(states.float(), attention_mask, self.pooling))).float()
        location = values[:, 0]
        raw = values[:, 1] if self.heteroscedastic else torch.zeros_like(location)
        scale = raw.clamp(-_LOG_SCALE, _LOG_SCALE).exp()
        return {"location": location, "scale": scale, "radius": scale * self.quantile}


class OrdinalRegressor(Regressor):
    """Predict the rank of an ordered class by one score and a bias for each boundary (CORAL; Cao et al. 2020).

    Args:
        encoder: Result of `Model.build_encoder`.
        shares: Share of the training rows above each boundary, falling; the biases start from them.
    """

    def __init__(self, encoder: Any, shares: Sequence[float]) -> None:
        super().__init__(encoder, heteroscedastic=False)
        self.boundaries = nn.Parameter(torch.tensor(shares).clamp(1e-4, 1 - 1e-4).logit())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return the outputs of `Regressor`, in ranks, and `logits` (B, classes - 1) of a rank above each boundary."""
        score = super().forward(input_ids, attention_mask)["location"]
        logits = score.unsqueeze(-1) + self.boundaries
        scale = torch.ones_like(score)
        location = logits.sigmoid().sum(dim=-1)
        return {"location": location, "scale": scale, "radius": scale * self.quantile, "logits": logits}
