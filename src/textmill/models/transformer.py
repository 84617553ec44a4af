"""The Transformer decoder: a stack of blocks, each attention and a feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from textmill.models.architecture import Architecture
from textmill.models.attention import CausalSelfAttention, additive_mask, trains_faster_plain
from textmill.models.cache import KeyValueCache, LayerCache
from textmill.models.feed_forward import SwiGLU
from textmill.models.norm import RMSNorm
from textmill.models.rotary import RotaryPositions, Rotation
from textmill.models.routing.record import RoutingRecord


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) (pre-norm, Xiong et al. 2020)."""

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention_norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)
        self.attention = CausalSelfAttention(architecture)
        self.feed_forward_norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)
        self.feed_forward = SwiGLU(architecture.width, architecture.dense_width)
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(
        self, states: Tensor, rotation: Rotation, mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """From (B, T, D) to (B, T, D); arguments as of `CausalSelfAttention`."""
        states = states + self.dropout(self.attention(self.attention_norm(states), rotation, mask, cache))
        output: Tensor = states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))
        return output


class Decoder(nn.Module):
    """All blocks and the norm after them."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.positions = RotaryPositions(architecture.width_of_head, architecture.max_length, architecture.rope_base)
        self.blocks = nn.ModuleList(DecoderBlock(architecture, layer) for layer in range(architecture.n_layers))
        self.norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)

    def forward(
        self,
        states: Tensor,
        *,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, list[RoutingRecord]]:
        """Hidden states (B, T, D) of embedded tokens (B, T, D), and what the routers did.

        See `LanguageModel.hidden_states` for the arguments.
        """
        batch, length, _ = states.shape
        start = 0 if cache is None else cache.length
        valid = attention_mask if cache is None else cache.admit(batch, length, attention_mask)
        rotation = self.positions(_positions(start, length, document_ids, valid))
        mask = self._mask(states, start, document_ids, valid)
        routing: list[RoutingRecord] = []
        for layer, block in enumerate(self.blocks):
            states = block(states, rotation, mask, None if cache is None else cache.layer(layer))
        if cache is not None:
            cache.length += length
        return self.norm(states), routing

    def _mask(self, states: Tensor, start: int, document_ids: Tensor | None, valid: Tensor | None) -> Tensor | None:
        """The additive mask, or None where a fused kernel needs none."""
        length = states.size(1)
        plain_causal = document_ids is None and valid is None
        if plain_causal and (length == 1 or (start == 0 and not trains_faster_plain(states, length))):
            return None
        keys = torch.arange(start + length, device=states.device)
        dtype = states.dtype
        if torch.is_autocast_enabled(states.device.type):
            dtype = torch.get_autocast_dtype(states.device.type)
        return additive_mask(keys[start:], keys, document_ids=document_ids, valid=valid, dtype=dtype)


def _positions(start: int, length: int, document_ids: Tensor | None, valid: Tensor | None) -> Tensor | slice:
    """Positions (B, T), counted anew in every document and not counting padding; a slice if all rows agree."""
    if document_ids is not None:
        index = torch.arange(length, device=document_ids.device).expand_as(document_ids)
        begins = torch.ones_like(document_ids, dtype=torch.bool)
        begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        return index - torch.where(begins, index, 0).cummax(dim=1).values
    if valid is not None:
        return (valid.long().cumsum(dim=1) - 1).clamp(min=0)[:, start:]
    return slice(start, start + length)
