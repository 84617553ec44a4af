"""Root-mean-square normalisation."""

from __future__ import annotations

from torch import nn

RMSNorm = nn.RMSNorm
