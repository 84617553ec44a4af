"""An encoder with a linear head that scores each label apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from textmill.models.sequence_classifier import SequenceClassifier


class MultiLabelClassifier(SequenceClassifier):
    """A logit for each label, and its margin over the label's threshold.

    `thresholds` (C,) are logits. They are not trained, but calibrated on the validation split.

    Args:
        encoder: Result of `Model.build_encoder`.
        shares: Share of the training rows with each label, between 0 and 1; the biases start from them.
    """

    thresholds: Tensor

    def __init__(self, encoder: Any, shares: Sequence[float]) -> None:
        super().__init__(encoder, len(shares))
        with torch.no_grad():
            self.output.bias.copy_(torch.tensor(shares).clamp(1e-4, 1 - 1e-4).logit())
        self.register_buffer("thresholds", torch.zeros(len(shares)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return `logits` and `margins`, both (B, C) in float32, from token ids and mask, both (B, T)."""
        logits = super().forward(input_ids, attention_mask)["logits"]
        return {"logits": logits, "margins": logits - self.thresholds}
