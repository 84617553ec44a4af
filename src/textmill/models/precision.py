"""Precision of matrix products."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(states: Tensor) -> torch.dtype:
    """Return the precision of matrix products with `states`, autocast included."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
