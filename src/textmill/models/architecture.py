"""Options that define the weights and the computation of a decoder."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from textmill.config.section import Section
from textmill.config.types import Fraction, OptionalPluginSpec

Count = Annotated[int, Field(ge=1)]

_MULTIPLE_OF = 32


class ExpertsConfig(Section):
    """A mixture of experts in place of the dense feed-forward network.

    Attributes:
        n_experts: Experts E of a layer.
        hidden_width: Hidden width of each expert. With None, the experts of a token, shared ones
            included, are together as wide as the dense network.
        shared_experts: Experts of the same width that every token passes (Dai et al. 2024,
            "DeepSeekMoE").
        capacity_factor: Maximum load of an expert in a training batch, as a multiple of its even
            share; further tokens skip the expert (Fedus et al. 2021). None drops no tokens.
        first_layer: First layer with experts, counted from 0.
        every: Distance of the layers with experts, from `first_layer` on.
    """

    n_experts: Annotated[int, Field(ge=2)] = 8
    hidden_width: Count | None = None
    shared_experts: Annotated[int, Field(ge=0)] = 0
    capacity_factor: Annotated[float, Field(gt=0)] | None = None
    first_layer: Annotated[int, Field(ge=0)] = 0
    every: Count = 1


class Architecture(Section):
    """A decoder-only Transformer.

    Attributes:
        n_layers: Blocks of attention and feed-forward network.
        n_heads: Heads of the queries.
        n_key_value_heads: Heads of keys and values, each shared by a group of query heads
            (Ainslie et al. 2023); None: as many as `n_heads`.
        width: Width D of the hidden states.
        head_width: Width of one head; None: D / n_heads.
        hidden_width: Hidden width of the feed-forward network; None: 8/3 D, rounded up, which has as
            many weights as the classical 4 D without a gate (Shazeer 2020).
        max_length: Longest context, in tokens.
        rope_base: Base of the rotary frequencies; the lowest one turns once in 2π times this many tokens.
        qk_norm: Normalise queries and keys (Dehghani et al. 2023), as Qwen3 does.
        tied: The output layer shares the embedding's weights (Press & Wolf 2017).
        dropout: Dropout of each block's residual branches and of the embeddings.
        norm_epsilon: Added to the mean square before its root is taken.
        feed_forward: `dense` or `experts`.
        experts: Options of `feed_forward: experts`.
        router: Plugin of type `textmill.models.routing.base.Router`, for `feed_forward: experts`.
    """

    n_layers: Count = 4
    n_heads: Count = 4
    n_key_value_heads: Count | None = None
    width: Count = 128
    head_width: Annotated[int, Field(ge=2, multiple_of=2)] | None = None
    hidden_width: Count | None = None
    max_length: Count = 64
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0
    qk_norm: bool = True
    tied: bool = True
    dropout: Fraction = 0.0
    norm_epsilon: Annotated[float, Field(gt=0)] = 1e-6
    feed_forward: Literal["dense", "experts"] = "dense"
    experts: ExpertsConfig = ExpertsConfig()
    router: OptionalPluginSpec = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.head_width is None and self.width % (2 * self.n_heads):
            raise ValueError(
                f"width {self.width} does not divide into {self.n_heads} heads of an even width; set head_width"
            )
        if self.n_heads % self.key_value_heads:
            raise ValueError(f"{self.n_heads} heads cannot share {self.key_value_heads} key-value heads evenly")
        if self.feed_forward == "experts" and self.router is None:
            raise ValueError("experts need a router; choose one of conf/router/")
        return self

    @property
    def key_value_heads(self) -> int:
        """Number of key heads, and of value heads."""
        return self.n_key_value_heads or self.n_heads

    @property
    def width_of_head(self) -> int:
        """Width of one head, d_k."""
        return self.head_width or self.width // self.n_heads

    @property
    def dense_width(self) -> int:
        """Hidden width of the dense feed-forward network."""
        return self.hidden_width or round_up(8 * self.width // 3, _MULTIPLE_OF)

    def has_experts(self, layer: int) -> bool:
        """Return whether the layer, counted from 0, is a mixture of experts."""
        from_first = layer - self.experts.first_layer
        return self.feed_forward == "experts" and from_first >= 0 and from_first % self.experts.every == 0


def round_up(width: int, multiple_of: int) -> int:
    """Round a width up to a multiple for which matrix products are fast."""
    return -(-width // multiple_of) * multiple_of
