"""A language model: token ids in, the likelihood of each next token out."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from textmill.errors import UserError
from textmill.models.architecture import Architecture
from textmill.models.cache import KeyValueCache
from textmill.models.experts import MixtureOfExperts
from textmill.models.precision import compute_dtype
from textmill.models.routing.record import RoutingRecord
from textmill.models.transformer import Decoder, Source, initialise


@dataclass(frozen=True)
class Hidden:
    """What the decoder makes of its input.

    Attributes:
        states: Normalised hidden states (B, T, D), to be multiplied by the output weights.
        routing: One record for every layer with experts, the lowest first.
    """

    states: Tensor
    routing: list[RoutingRecord]


class LanguageModel(nn.Module):
    """Embedding, decoder, output layer: p(token t+1 | tokens 1 to t) = softmax(W h_t).

    Args:
        architecture: Its shape.
        vocabulary_size: Tokens V.
        reads_source: Whether it writes about a source that an encoder has read (see `EncoderDecoder`).
    """

    def __init__(self, architecture: Architecture, vocabulary_size: int, *, reads_source: bool = False) -> None:
        super().__init__()
        self.architecture = architecture
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, architecture.width)
        self.dropout = nn.Dropout(architecture.dropout)
        self.decoder = Decoder(architecture, reads_source=reads_source)
        self.output = None if architecture.tied else nn.Linear(architecture.width, vocabulary_size, bias=False)
        initialise(self, architecture)

    @property
    def output_weight(self) -> Tensor:
        """The output layer's weights (V, D), the embedding's where they are tied."""
        return self.embedding.weight if self.output is None else self.output.weight

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        source: Source | None = None,
    ) -> Hidden:
        """Everything but the output layer, so that a loss may be computed in chunks of the logits.

        Args:
            input_ids: (B, T).
            document_ids: (B, T), for packed input: no token sees another document's, positions
                restart where the id changes. Not together with a mask or a cache.
            attention_mask: (B, T), 0 at padding, on whichever side.
            cache: Of the tokens before these, which are added to it; see `new_cache`.
            source: What each row is about, where the model reads a source.

        Raises:
            UserError: The input is longer than the model's context or than the cache.
        """
        if input_ids.size(1) > self.architecture.max_length:
            raise UserError(
                f"{input_ids.size(1)} tokens do not fit the model's context of {self.architecture.max_length}",
                fix="Shorten the input, or train with a larger model.max_length",
            )
        if document_ids is not None and (attention_mask is not None or cache is not None):
            raise ValueError("packed input has neither padding nor a cache")
        states, routing = self.decoder(
            self.dropout(self.embedding(input_ids)),
            input_ids,
            document_ids=document_ids,
            attention_mask=attention_mask,
            cache=cache,
            source=source,
        )
        return Hidden(states, routing)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> dict[str, Tensor]:
        """`logits` (B, T, V) of what follows each token; arguments as of `hidden_states`."""
        hidden = self.hidden_states(input_ids, document_ids=document_ids, attention_mask=attention_mask, cache=cache)
        return {"logits": F.linear(hidden.states, self.output_weight)}

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """Room for the keys and values of `length` tokens in each of `batch` rows.

        Its precision is that of computing, so call it under the same autocast as the model.

        Raises:
            UserError: It is longer than the model's context, or a router needs to see later tokens.
        """
        for layer in self.mixtures().values():
            if not layer.router.causal_in_evaluation:
                raise UserError(
                    f"the router {type(layer.router).__name__} mixes each token with later ones, so no text can "
                    "be generated",
                    where="router",
                    fix="Train with another one of conf/router/",
                )
        if length > self.architecture.max_length:
            raise UserError(
                f"{length} tokens do not fit the model's context of {self.architecture.max_length}",
                fix="Shorten the prompt or generate fewer tokens",
            )
        weight = self.embedding.weight
        dtype = compute_dtype(weight)
        shape = (batch, self.architecture.key_value_heads, length, self.architecture.width_of_head)
        return KeyValueCache(self.architecture.n_layers, shape, dtype=dtype, device=weight.device)

    @staticmethod
    def auxiliary_losses(routing: list[RoutingRecord]) -> dict[str, Tensor]:
        """The routers' loss terms, summed over the layers (Fedus et al. 2021), by name; empty for a dense model."""
        losses: dict[str, Tensor] = {}
        for record in routing:
            for name, value in record.losses.items():
                losses[name] = losses[name] + value if name in losses else value
        return losses

    def update_routers(self, routing: list[RoutingRecord]) -> None:
        """Let routers that balance themselves without a loss adapt; once after every training step."""
        for mixture, record in zip(self.mixtures().values(), routing, strict=True):
            mixture.router.update(record.load)

    def parameter_counts(self) -> dict[str, int]:
        """`total` weights, and `active` ones, which a token passes: without the experts not chosen."""
        total = sum(parameter.numel() for parameter in self.parameters())
        idle = 0
        for layer in self.mixtures().values():
            experts = sum(parameter.numel() for parameter in layer.experts.parameters())
            idle += round(experts * (1 - layer.router.experts_per_token / layer.router.n_experts))
        return {"total": total, "active": total - idle}

    def flops_per_token(self, length: int) -> int:
        """Floating-point operations of one training step per token, in contexts of `length` tokens.

        Two for every weight that a token is multiplied by, and two products with all keys and
        values; the backward pass takes twice the forward one (Chowdhery et al. 2022, "PaLM", appendix
        B, whose causal attention counts in full, too).
        """
        lookups = 0 if self.output is None else self.embedding.weight.numel()
        products = self.parameter_counts()["active"] - lookups
        attention = (
            2 * self.architecture.n_layers * self.architecture.n_heads * self.architecture.width_of_head * length
        )
        return 6 * (products + attention)

    def mixtures(self) -> dict[int, MixtureOfExperts]:
        """The layers with experts, by their number."""
        return {module.layer: module for module in self.modules() if isinstance(module, MixtureOfExperts)}
