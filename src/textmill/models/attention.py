"""Attention: softmax(QKᵀ/√d_k + M)V, and multi-head layers (Vaswani et al. 2017).

The additive mask M is 0 where a query sees a key, else -∞.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from textmill.models.architecture import Architecture
from textmill.models.cache import LayerCache
from textmill.models.documents import Documents, attend_within
from textmill.models.norm import RMSNorm
from textmill.models.rotary import Rotation, rotate


def scaled_dot_product_attention_plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Compute softmax(QKᵀ/√d_k + M)V as the formula is written.

    Args:
        query: (B, H, T, d_k).
        key: (B, K, S, d_k); each key head serves H / K query heads.
        value: (B, K, S, d_v).
        mask: Additive, broadcast to (B, H, T, S); every row has a finite entry.

    Returns:
        (B, H, T, d_v).
    """
    batch, heads, length, width = query.shape
    group = heads // key.size(1)
    if group > 1:
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    query, key, value = (each.reshape(batch * heads, -1, each.size(-1)) for each in (query, key, value))
    mask = mask.expand(batch, heads, length, -1).reshape(batch * heads, length, -1)
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=1 / math.sqrt(width))
    return (scores.softmax(dim=-1) @ value).view(batch, heads, length, -1)


def scaled_dot_product_attention_fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the same with PyTorch's fused kernels, which never store the scores (Dao et al. 2022).

    Shapes as in the plain form. With a mask of None, each query sees the keys up to its own
    position; a single query sees all keys.
    """
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and query.size(2) > 1,
        enable_gqa=query.size(1) != key.size(1),
    )


def additive_mask(
    queries: Tensor,
    keys: Tensor,
    *,
    document_ids: Tensor | None = None,
    valid: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the additive mask M of causal, padded and packed input.

    Args:
        queries: Positions of the queries in the sequence, (T,).
        keys: Positions of the keys, (S,).
        document_ids: (B, S) with T = S; a token sees only tokens of its own document.
        valid: (B, S); False or 0 at padding, which no other token sees.
        dtype: Precision of the mask, that of the queries.

    Returns:
        (1, 1, T, S) or (B, 1, T, S). Every token, padding too, sees itself, so that no row is empty.
    """
    visible = (keys <= queries[:, None])[None]
    if document_ids is not None:
        visible = visible & (document_ids[:, :, None] == document_ids[:, None, :])
    if valid is not None:
        visible = visible & (valid.bool()[:, None, :] | (keys == queries[:, None]))
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)[:, None]


def trains_faster_plain(states: Tensor, dtype: torch.dtype, length: int) -> bool:
    """Return whether the plain form trains faster than the fused one at this precision and length.

    It does on CPUs, whose fused kernels have a slow backward pass. Forward and backward in bfloat16
    took 0.8 ms against 5.5 ms for 12 rows and 4 heads of 64 tokens, and 9.8 ms against 14.3 ms for one
    row of 1,024 tokens. In float32 the fused kernels win above about 128 tokens (256: 4.3 ms
    against 5.3 ms).
    """
    longest = 128 if dtype == torch.float32 else 1024
    return states.device.type == "cpu" and length <= longest


def padding_mask(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask (B, 1, 1, S) that hides padding; the attention mask (B, S) is 0 there."""
    hidden = ~attention_mask.bool()
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)[:, None, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | Documents | None) -> Tensor:
    """Compute attention in the form that trains faster, and concatenate the heads: (B, T, H d_v)."""
    if isinstance(mask, Documents):
        attended: Tensor = attend_within(query, key, value, mask)
    elif mask is not None and trains_faster_plain(query, query.dtype, key.size(2)):
        attended = scaled_dot_product_attention_plain(query, key, value, mask)
    else:
        attended = scaled_dot_product_attention_fused(query, key, value, mask)
    return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention; one matrix product gives queries, keys and values."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.heads = (architecture.n_heads, architecture.key_value_heads, architecture.key_value_heads)
        self.head_width = architecture.width_of_head
        self.query_key_value = nn.Linear(architecture.width, sum(self.heads) * self.head_width, bias=False)
        self.output = nn.Linear(architecture.n_heads * self.head_width, architecture.width, bias=False)
        self.query_norm, self.key_norm = _head_norms(architecture)

    def forward(
        self, states: Tensor, rotation: Rotation, mask: Tensor | Documents | None, cache: LayerCache | None = None
    ) -> Tensor:
        """Map normalised states (B, T, D) to (B, T, D); a mask of None stands for plain causal input.

        Packed rows have a mask, or their documents.

        The keys and values of `states` are appended to the cache of earlier tokens.
        """
        batch, length, _ = states.shape
        heads = self.query_key_value(states).view(batch, length, sum(self.heads), self.head_width)
        query, key, value = heads.split(self.heads, dim=2)
        query = rotate(self.query_norm(query).transpose(1, 2), rotation)
        key = rotate(self.key_norm(key).transpose(1, 2), rotation)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.extend(key, value)
        output: Tensor = self.output(attend(query, key, value, mask))
        return output


class CrossAttention(nn.Module):
    """Multi-head attention to the states of an encoder.

    Keys and values are computed once for each source (`keys_and_values`). Positions are not
    rotated: distances between the two texts have no meaning.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.heads = architecture.n_heads
        self.key_value_heads = architecture.key_value_heads
        self.head_width = architecture.width_of_head
        self.query = nn.Linear(architecture.width, self.heads * self.head_width, bias=False)
        self.key_value = nn.Linear(architecture.width, 2 * self.key_value_heads * self.head_width, bias=False)
        self.output = nn.Linear(self.heads * self.head_width, architecture.width, bias=False)
        self.query_norm, self.key_norm = _head_norms(architecture)

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, K, S, d) of the encoder's states (B, S, D)."""
        batch, length, _ = source.shape
        heads = self.key_value(source).view(batch, length, 2 * self.key_value_heads, self.head_width)
        key, value = heads.chunk(2, dim=2)
        return self.key_norm(key).transpose(1, 2), value.transpose(1, 2)

    def forward(self, states: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D), with `keys_and_values` and an additive mask (B, 1, 1, S)."""
        batch, length, _ = states.shape
        query = self.query(states).view(batch, length, self.heads, self.head_width)
        output: Tensor = self.output(attend(self.query_norm(query).transpose(1, 2), key, value, mask))
        return output


def _head_norms(architecture: Architecture) -> tuple[nn.Module, nn.Module]:
    """Return the norms of queries and keys; identities if the architecture has none."""
    if not architecture.qk_norm:
        return nn.Identity(), nn.Identity()
    width, epsilon = architecture.width_of_head, architecture.norm_epsilon
    return RMSNorm(width, eps=epsilon), RMSNorm(width, eps=epsilon)
