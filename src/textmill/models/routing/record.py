"""What one layer's router did with a batch, kept for the losses and for those who watch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class RoutingRecord:
    """One layer's routing of one batch.

    Attributes:
        layer: Counted from 0.
        load: Tokens that chose each expert, dropped ones among them, (E,), float32.
        kept: Tokens that each expert took, (E,), float32.
        confidence: Mean over tokens of the largest probability the router gave, a scalar.
        losses: Terms to be added to the training loss, by name, already multiplied by their
            coefficients.
    """

    layer: int
    load: Tensor
    kept: Tensor
    confidence: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Entropy of the load (1: perfect balance), its maximum over its mean, share dropped, confidence."""
        total = self.load.sum().clamp(min=1)
        shares = self.load / total
        entropy = torch.special.entr(shares).sum() / torch.tensor(float(len(shares))).log()
        return {
            "load_entropy": float(entropy),
            "load_max_over_mean": float(shares.max() * len(shares)),
            "dropped_share": float(1 - self.kept.sum() / total),
            "confidence": float(self.confidence),
        }
