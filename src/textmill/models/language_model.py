"""A language model: from token ids to the probabilities of each next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from textmill.errors import UserError
from textmill.models.architecture import Architecture
from textmill.models.cache import KeyValueCache, check_length
from textmill.models.experts import MixtureOfExperts
from textmill.models.precision import compute_dtype
from textmill.models.ranks import rank_count, sum_over_ranks
from textmill.models.routing.record import RoutingRecord
from textmill.models.transformer import Decoder, Source, initialise


@dataclass(frozen=True)
class Hidden:
    """Normalised hidden states (B, T, D), and one routing record for each layer with experts."""

    states: Tensor
    routing: list[RoutingRecord]


class LanguageModel(nn.Module):
    """Embedding, decoder, output layer: p(token t+1 | tokens 1 to t) = softmax(W h_t).

    With `reads_source`, the decoder attends to a source (see `EncoderDecoder`).
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
        """Weights (V, D) of the output layer; with `tied`, those of the embedding."""
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
        """Compute all but the output layer, so that a loss can compute its logits in chunks.

        Args:
            input_ids: (B, T).
            document_ids: (B, T), for packed input: tokens see only their own document, and positions
                restart where the id changes. Not together with a mask or a cache.
            attention_mask: (B, T), 0 at padding, on either side.
            cache: Cache of the tokens before these (see `new_cache`), which are appended.
            source: Source of each row, if the model reads one.

        Raises:
            UserError: The input is longer than the model's context or than the cache.
        """
        check_length(input_ids.size(1), self.architecture.max_length)
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
        """Return `logits` (B, T, V) of the next token at each position; arguments as for `hidden_states`."""
        hidden = self.hidden_states(input_ids, document_ids=document_ids, attention_mask=attention_mask, cache=cache)
        return {"logits": F.linear(hidden.states, self.output_weight)}

    def new_cache(self, batch: int, length: int) -> KeyValueCache:
        """Allocate a cache for `length` tokens in each of `batch` rows.

        Call it under the same autocast as the model, which determines its precision.

        Raises:
            UserError: `length` exceeds the model's context, or a router depends on later tokens.
        """
        for layer in self.mixtures().values():
            if not layer.router.causal_in_evaluation:
                raise UserError(
                    f"the router {type(layer.router).__name__} depends on later tokens, so no text can be generated",
                    where="router",
                    fix="Train with another router of conf/router/",
                )
        check_length(length, self.architecture.max_length)
        weight = self.embedding.weight
        dtype = compute_dtype(weight)
        shape = (batch, self.architecture.key_value_heads, length, self.architecture.width_of_head)
        return KeyValueCache(self.architecture.n_layers, shape, dtype=dtype, device=weight.device)

    def auxiliary_losses(self, routing: list[RoutingRecord]) -> dict[str, Tensor]:
        """Return the routers' loss terms by name, summed over the layers (Fedus et al. 2021); {} for a dense model.

        The experts' shares of the load are those of the whole step where training knows them, else of the batch
        on all ranks.
        """
        losses: dict[str, Tensor] = {}
        loads: list[Tensor | None] = [mixture.router.step_load for mixture in self.mixtures().values()]
        if self.training and rank_count() > 1 and routing and loads[0] is None:
            loads = list(sum_over_ranks(torch.stack([record.load for record in routing])))
        for record, load in zip(routing, loads, strict=False):
            for name, value in record.terms(load).items():
                losses[name] = losses[name] + value if name in losses else value
        return losses

    def update_routers(self, routing: list[RoutingRecord]) -> None:
        """Update the routers that balance without a loss by the loads of a batch that is a whole step."""
        for mixture, record in zip(self.mixtures().values(), routing, strict=True):
            mixture.router.update(record.load)

    def parameter_counts(self) -> dict[str, int]:
        """Return the number of weights: `total`, and `active`, without the experts that a token does not pass."""
        total = sum(parameter.numel() for parameter in self.parameters())
        idle = 0
        for layer in self.mixtures().values():
            experts = sum(parameter.numel() for parameter in layer.experts.parameters())
            idle += round(experts * (1 - layer.router.experts_per_token / layer.router.n_experts))
        return {"total": total, "active": total - idle}

    def mixtures(self) -> dict[int, MixtureOfExperts]:
        """Return the layers with experts, by number."""
        return {module.layer: module for module in self.modules() if isinstance(module, MixtureOfExperts)}
