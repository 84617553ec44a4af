"""The Transformer decoder: a stack of blocks, each attention and a feed-forward network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from textmill.models.architecture import Architecture
from textmill.models.attention import CausalSelfAttention, additive_mask, trains_faster_plain
from textmill.models.cache import KeyValueCache, LayerCache
from textmill.models.experts import MixtureOfExperts
from textmill.models.feed_forward import SwiGLU
from textmill.models.norm import RMSNorm
from textmill.models.precision import compute_dtype
from textmill.models.rotary import RotaryPositions, Rotation
from textmill.models.routing.record import RoutingRecord


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) (pre-norm, Xiong et al. 2020).

    Args:
        architecture: Of the decoder.
        layer: Counted from 0; decides whether the feed-forward network is a mixture of experts.
    """

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)
        self.attention = CausalSelfAttention(architecture)
        self.feed_forward_norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)
        self.feed_forward: SwiGLU | MixtureOfExperts
        if architecture.has_experts(layer):
            self.feed_forward = MixtureOfExperts(architecture, layer)
        else:
            self.feed_forward = SwiGLU(architecture.width, architecture.dense_width)
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(
        self,
        states: Tensor,
        input_ids: Tensor,
        rotation: Rotation,
        mask: Tensor | None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, RoutingRecord | None]:
        """From (B, T, D) to (B, T, D), and what the router did if there is one.

        `input_ids` (B, T) are for routers; the other arguments are those of `CausalSelfAttention`.
        """
        states = states + self.dropout(self.attention(self.attention_norm(states), rotation, mask, cache))
        normalised = self.feed_forward_norm(states)
        if isinstance(self.feed_forward, MixtureOfExperts):
            added, record = self.feed_forward(normalised, input_ids)
            return states + self.dropout(added), record
        return states + self.dropout(self.feed_forward(normalised)), None


class Decoder(nn.Module):
    """All blocks and the norm after them.

    Attributes:
        activation_checkpointing: In training, keep only what goes into each block and compute the
            rest again in the backward pass: less memory for a third more time (Chen et al. 2016).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.positions = RotaryPositions(architecture.width_of_head, architecture.max_length, architecture.rope_base)
        self.blocks = nn.ModuleList(DecoderBlock(architecture, layer) for layer in range(architecture.n_layers))
        self.norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)

    def forward(
        self,
        states: Tensor,
        input_ids: Tensor,
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
        dtype = compute_dtype(states)
        rotation = self.positions(_positions(start, length, document_ids, valid), dtype)
        mask = _mask(states, start, document_ids, valid, dtype)
        routing: list[RoutingRecord] = []
        for layer, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layer(layer)
            if self.activation_checkpointing and torch.is_grad_enabled():
                states, record = checkpoint(block, states, input_ids, rotation, mask, use_reentrant=False)
            else:
                states, record = block(states, input_ids, rotation, mask, layer_cache)
            if record is not None:
                routing.append(record)
        if cache is not None:
            cache.length += length
        return self.norm(states), routing


def _mask(
    states: Tensor, start: int, document_ids: Tensor | None, valid: Tensor | None, dtype: torch.dtype
) -> Tensor | None:
    """The additive mask, or None where a fused kernel needs none."""
    length = states.size(1)
    plain_causal = document_ids is None and valid is None
    if plain_causal and (length == 1 or (start == 0 and not trains_faster_plain(states, dtype, length))):
        return None
    keys = torch.arange(start + length, device=states.device)
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
