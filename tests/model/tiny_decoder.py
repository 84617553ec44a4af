"""Tiny decoders for tests."""

from __future__ import annotations

from typing import Any

import torch

from textmill.models.architecture import Architecture
from textmill.models.language_model import LanguageModel

VOCABULARY = 29
ROUTERS = {
    "top_k": "top_k.TopK",
    "switch": "switch.Switch",
    "expert_choice": "expert_choice.ExpertChoice",
    "hash": "hash.Hash",
    "base": "base_layer.Base",
    "sinkhorn": "sinkhorn.Sinkhorn",
    "sigmoid_bias": "sigmoid_bias.SigmoidBias",
    "random": "random.Random",
    "soft": "soft.Soft",
}


def router(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"textmill.models.routing.{ROUTERS[name]}", **options}


def architecture(**options: Any) -> Architecture:
    defaults: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "width": 32, "hidden_width": 48, "max_length": 24}
    if "router" in options:
        defaults |= {"feed_forward": "experts", "experts": {"n_experts": 4}}
    return Architecture(**(defaults | options))


def language_model(seed: int = 0, **options: Any) -> LanguageModel:
    """A model whose weights are large enough for every part to matter, norms included."""
    torch.manual_seed(seed)
    model = LanguageModel(architecture(**options), VOCABULARY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif not name.startswith(("embedding", "output")):
                parameter.mul_(3)
        for name, buffer in model.named_buffers():
            if name.endswith("router.bias"):
                buffer.uniform_(-0.2, 0.2)
    return model


def token_ids(batch: int = 3, length: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
