"""Keys and values of the tokens read so far, so that generation computes each only once."""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.errors import UserError


class LayerCache:
    """One layer's part of a `KeyValueCache`."""

    def __init__(self, cache: KeyValueCache, layer: int) -> None:
        self._cache = cache
        self._layer = layer

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, K, T, d) of new tokens; gives those of all tokens, as views."""
        start, end = self._cache.length, self._cache.length + key.size(2)
        keys, values = self._cache.keys[self._layer], self._cache.values[self._layer]
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        return keys[:, :, :end], values[:, :, :end]


class KeyValueCache:
    """Room for `length` tokens a row, taken once.

    Args:
        n_layers: Of the decoder.
        shape: (B, K, S, d): rows, key-value heads, most tokens, width of a head.
        dtype: Of keys and values.
        device: Where they lie.

    Attributes:
        length: Tokens read so far, padding among them.
        valid: (B, S), False at padding; None as long as there was none.
    """

    def __init__(
        self, n_layers: int, shape: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keys = torch.zeros(n_layers, *shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0
        self.valid: Tensor | None = None

    @property
    def room(self) -> int:
        """Most tokens a row may have."""
        return self.keys.size(3)

    def layer(self, layer: int) -> LayerCache:
        """The part of one layer, counted from 0."""
        return LayerCache(self, layer)

    def admit(self, batch: int, length: int, attention_mask: Tensor | None) -> Tensor | None:
        """Note which of the next `length` tokens are valid; gives the validity of all so far, or None.

        Raises:
            UserError: There is no room for them.
        """
        end = self.length + length
        if end > self.room:
            raise UserError(
                f"{end} tokens do not fit a cache of {self.room}", fix="Shorten the prompt or generate fewer tokens"
            )
        if attention_mask is not None and self.valid is None:
            self.valid = torch.ones(batch, self.room, dtype=torch.bool, device=self.keys.device)
        if self.valid is None:
            return None
        if attention_mask is not None:
            self.valid[:, self.length : end] = attention_mask.bool()
        return self.valid[:, :end]

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows of these indices, in this order: what beam search does with its beams.

        There may be fewer than before, not more.
        """
        # Only what is written is copied: the room beyond it may be many times as large.
        keys, values = (whole[:, :, :, : self.length][:, rows] for whole in (self.keys, self.values))
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]
        self.keys[:, :, :, : self.length] = keys
        self.values[:, :, :, : self.length] = values
        if self.valid is not None:
            self.valid = self.valid[rows]
