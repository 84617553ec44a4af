"""Cache of keys and values, so that generation computes each only once."""

from __future__ import annotations

import torch
from torch import Tensor

from textmill.errors import UserError


class LayerCache:
    """The view of one layer on a `KeyValueCache`."""

    def __init__(self, cache: KeyValueCache, layer: int) -> None:
        self._cache = cache
        self._layer = layer

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, K, T, d) of new tokens and return those of all tokens, as views."""
        start, end = self._cache.length, self._cache.length + key.size(2)
        keys, values = self._cache.keys[self._layer], self._cache.values[self._layer]
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        return keys[:, :, :end], values[:, :, :end]


class KeyValueCache:
    """Keys and values of all layers, allocated once.

    `shape` is (B, K, S, d): rows, key-value heads, maximum tokens, width of a head.

    Attributes:
        length: Tokens stored so far, padding included.
        valid: (B, S), False at padding; None if there is no padding.
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
        """Maximum tokens of a row."""
        return self.keys.size(3)

    def layer(self, layer: int) -> LayerCache:
        """Return the view of one layer, counted from 0."""
        return LayerCache(self, layer)

    def append_mask(self, batch: int, length: int, attention_mask: Tensor | None) -> Tensor | None:
        """Store the mask of the next `length` tokens and return that of all tokens, or None.

        Raises:
            UserError: The tokens do not fit.
        """
        end = self.length + length
        check_length(end, self.room, "a cache")
        if attention_mask is not None and self.valid is None:
            self.valid = torch.ones(batch, self.room, dtype=torch.bool, device=self.keys.device)
        if self.valid is None:
            return None
        if attention_mask is not None:
            self.valid[:, self.length : end] = attention_mask.bool()
        return self.valid[:, :end]

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows with these indices, in this order; there may be fewer than before."""
        # Copy only what is stored: the capacity may be many times as large
        keys, values = (whole[:, :, :, : self.length][:, rows] for whole in (self.keys, self.values))
        self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]
        self.keys[:, :, :, : self.length] = keys
        self.values[:, :, :, : self.length] = values
        if self.valid is not None:
            self.valid = self.valid[rows]


def check_length(tokens: int, limit: int, name: str = "the model's context") -> None:
    """Raise a `UserError` if `tokens` exceed `limit`, the length of what `name` says."""
    if tokens > limit:
        fix = "Shorten the text, generate fewer tokens, or choose a model with a longer context"
        raise UserError(f"{tokens} tokens do not fit {name} of {limit}", fix=fix)
