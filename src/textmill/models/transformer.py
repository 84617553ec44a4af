"""Transformer stacks: the decoder, with or without a source, and the encoder of the source."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textmill.models.architecture import Architecture
from textmill.models.attention import CrossAttention, SelfAttention, additive_mask, padding_mask, trains_faster_plain
from textmill.models.cache import KeyValueCache, LayerCache
from textmill.models.documents import Documents, group_documents
from textmill.models.experts import MixtureOfExperts
from textmill.models.feed_forward import SwiGLU
from textmill.models.norm import RMSNorm
from textmill.models.precision import compute_dtype
from textmill.models.rotary import RotaryPositions, Rotation
from textmill.models.routing.record import RoutingRecord


@dataclass(frozen=True)
class Source:
    """Keys and values (B, K, S, d) of a source for each layer, and its additive mask (B, 1, 1, S)."""

    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor

    def select(self, rows: Tensor) -> Source:
        """Return the rows with these indices, in this order."""
        return Source([(key[rows], value[rows]) for key, value in self.keys_values], self.mask[rows])


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)) (pre-norm, Xiong et al. 2020).

    With a source, x + source_attention(norm(x)) comes between the two. `layer`, counted from 0,
    decides between dense network and experts.
    """

    def __init__(self, architecture: Architecture, layer: int, *, reads_source: bool = False) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)
        self.attention = SelfAttention(architecture)
        self.source_attention: CrossAttention | None = None
        if reads_source:
            self.source_attention_norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)
            self.source_attention = CrossAttention(architecture)
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
        mask: Tensor | Documents | None,
        cache: LayerCache | None = None,
        source: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, RoutingRecord | None]:
        """Map (B, T, D) to (B, T, D), and return the routing record, if any.

        `input_ids` (B, T) are for routers; `source` has keys, values and mask for `CrossAttention`. The
        other arguments are those of `SelfAttention`.
        """
        states = states + self.dropout(self.attention(self.attention_norm(states), rotation, mask, cache))
        if self.source_attention is not None and source is not None:
            states = states + self.dropout(self.source_attention(self.source_attention_norm(states), *source))
        normalised = self.feed_forward_norm(states)
        if isinstance(self.feed_forward, MixtureOfExperts):
            added, record = self.feed_forward(normalised, input_ids)
            return states + self.dropout(added), record
        return states + self.dropout(self.feed_forward(normalised)), None


class Decoder(nn.Module):
    """All blocks and the final norm; with `reads_source`, each block attends to a source."""

    def __init__(self, architecture: Architecture, *, reads_source: bool = False) -> None:
        super().__init__()
        self.positions = RotaryPositions(architecture.width_of_head, architecture.max_length, architecture.rope_base)
        self.blocks = nn.ModuleList(
            Block(architecture, layer, reads_source=reads_source) for layer in range(architecture.n_layers)
        )
        self.norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)

    def forward(
        self,
        states: Tensor,
        input_ids: Tensor,
        *,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        source: Source | None = None,
    ) -> tuple[Tensor, list[RoutingRecord]]:
        """Return hidden states (B, T, D) of embedded tokens (B, T, D), and the routing records.

        See `LanguageModel.hidden_states` for the arguments.
        """
        batch, length, _ = states.shape
        start = 0 if cache is None else cache.length
        valid = attention_mask if cache is None else cache.append_mask(batch, length, attention_mask)
        dtype = compute_dtype(states)
        rotation = self.positions(_positions(start, length, document_ids, valid), dtype)
        mask = _mask(states, start, document_ids, valid, dtype)
        routing: list[RoutingRecord] = []
        for layer, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layer(layer)
            layer_source = None if source is None else (*source.keys_values[layer], source.mask)
            states, record = block(states, input_ids, rotation, mask, layer_cache, layer_source)
            if record is not None:
                routing.append(record)
        if cache is not None:
            cache.length += length
        return self.norm(states), routing

    def project_source(self, states: Tensor, attention_mask: Tensor) -> Source:
        """Compute keys and values of an encoder's states (B, S, D), once for all target tokens."""
        layers = [block.source_attention.keys_and_values(states) for block in self.blocks]  # type: ignore[union-attr, operator]
        return Source(layers, padding_mask(attention_mask, layers[0][0].dtype))


class Encoder(nn.Module):
    """Bidirectional blocks and the final norm."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.positions = RotaryPositions(architecture.width_of_head, architecture.max_length, architecture.rope_base)
        self.blocks = nn.ModuleList(Block(architecture, layer) for layer in range(architecture.n_layers))
        self.norm = RMSNorm(architecture.width, eps=architecture.norm_epsilon)
        initialise(self, architecture)

    def forward(self, states: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return hidden states (B, S, D) of embedded tokens (B, S, D); the mask is 0 at padding on the right."""
        dtype = compute_dtype(states)
        rotation = self.positions(slice(0, states.size(1)), dtype)
        mask = padding_mask(attention_mask, dtype)
        for block in self.blocks:
            states, _ = block(states, input_ids, rotation, mask)
        output: Tensor = self.norm(states)
        return output


def initialise(module: nn.Module, architecture: Architecture) -> None:
    """Initialise weights, embeddings too, from a normal distribution with deviation √(2 / 5D).

    See Nguyen & Salazar 2019; at D = 768 it is GPT-2's 0.02. The output layers of residual branches
    start 1/√(2N) smaller for N layers, so that the variance does not grow with depth (Radford et al. 2019).
    """
    deviation = math.sqrt(2 / (5 * architecture.width))
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            continue  # norms start at one
        if name.endswith("noise_gate.weight"):
            nn.init.zeros_(parameter)  # the noise of all experts starts equal (Shazeer et al. 2017)
        elif name.endswith(("attention.output.weight", "down.weight", "down")):
            nn.init.normal_(parameter, std=deviation / math.sqrt(2 * architecture.n_layers))
        else:
            nn.init.normal_(parameter, std=deviation)


def _mask(
    states: Tensor, start: int, document_ids: Tensor | None, valid: Tensor | None, dtype: torch.dtype
) -> Tensor | Documents | None:
    """Return the additive mask, or None if a fused kernel needs none, or the documents of long packed rows."""
    length = states.size(1)
    plain_causal = document_ids is None and valid is None
    if plain_causal and (length == 1 or (start == 0 and not trains_faster_plain(states, dtype, length))):
        return None
    if document_ids is not None and not trains_faster_plain(states, dtype, length):
        documents: Documents = group_documents(document_ids)
        return documents
    keys = torch.arange(start + length, device=states.device)
    return additive_mask(keys[start:], keys, document_ids=document_ids, valid=valid, dtype=dtype)


def _positions(start: int, length: int, document_ids: Tensor | None, valid: Tensor | None) -> Tensor | slice:
    """Return positions (B, T), restarted in every document and without padding; a slice if all rows agree."""
    if document_ids is not None:
        return positions_in_documents(document_ids)
    if valid is not None:
        return (valid.long().cumsum(dim=1) - 1).clamp(min=0)[:, start:]
    return slice(start, start + length)


def positions_in_documents(document_ids: Tensor) -> Tensor:
    """Return the position (B, T) of each token in its document; tokens of a document are neighbours."""
    index = torch.arange(document_ids.size(1), device=document_ids.device).expand_as(document_ids)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values
