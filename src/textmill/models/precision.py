"""The precision in which products are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(states: Tensor) -> torch.dtype:
    """That of matrix products with `states`, autocast regarded; so that of queries and keys too."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
