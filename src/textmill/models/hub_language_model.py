"""A causal language model of the transformers library with the interface of `LanguageModel`."""

from __future__ import annotations

import inspect
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor, nn

from textmill.errors import UserError
from textmill.models.cache import check_length
from textmill.models.language_model import Hidden
from textmill.models.transformer import positions_in_documents

_TIED = "backbone.lm_head.weight"
_TOLERANCE = 1e-3
_ROUNDING = 0.05  # of the largest state: more than bfloat16 rounds, much less than another document changes


class HubLanguageModel(nn.Module):
    """An `AutoModelForCausalLM` with the methods of `textmill.models.language_model.LanguageModel`.

    Raises:
        UserError: The logits are not the last states times the output weights.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.vocabulary_size: int = backbone.config.vocab_size
        # The part of an `Architecture` that generation needs
        self.architecture = SimpleNamespace(max_length=int(getattr(backbone.config, "max_position_embeddings", 1024)))
        # Renamed in transformers 5.24
        parameters = inspect.signature(backbone.base_model.forward).parameters
        self._cache_option = "cache" if "cache" in parameters else "past_key_values"
        # Tied weights are one tensor, which a file of weights stores once
        self._tied = backbone.get_output_embeddings().weight is backbone.get_input_embeddings().weight
        self.register_state_dict_post_hook(_without_tied)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_tied)  # type: ignore[no-untyped-call]
        self._check()

    @property
    def output_weight(self) -> Tensor:
        """Weights (V, D) of the output layer."""
        weight: Tensor = self.backbone.get_output_embeddings().weight
        return weight

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: HubCache | None = None,
    ) -> Hidden:
        """Return the last hidden states (B, T, D) of token ids (B, T); the mask (B, T) is 0 at padding.

        With `document_ids` (B, T), for packed input without padding or cache, tokens see only their own document.

        Raises:
            UserError: The architecture mixes packed documents, or the row is too long.
        """
        check_length(input_ids.size(1), self.architecture.max_length)
        options: dict[str, Any] = {"use_cache": False}
        if document_ids is not None:
            if not self._separates:
                message = f"{self.backbone.config.model_type} of transformers mixes documents packed into a row"
                raise UserError(message, fix="Set task.separate_documents to false")
            # transformers finds the documents by their positions, which begin at 0
            options["position_ids"] = positions_in_documents(document_ids)
        if cache is not None:
            options = {"use_cache": True, self._cache_option: cache.keys_and_values}
            attention_mask = cache.append_mask(input_ids, attention_mask)
        if attention_mask is not None:
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            options |= {"attention_mask": attention_mask, "position_ids": positions[:, -input_ids.size(1) :]}
        outputs = self.backbone.base_model(input_ids=input_ids, **options)
        return Hidden(outputs.last_hidden_state, [])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` (B, T, V) of the next token at each position."""
        states = self.hidden_states(input_ids, attention_mask=attention_mask).states
        return {"logits": F.linear(states, self.output_weight)}

    def new_cache(self, batch: int, length: int) -> HubCache:  # noqa: ARG002 - it grows as needed
        """Return a cache that grows.

        Raises:
            UserError: `length` exceeds the model's context.
        """
        check_length(length, self.architecture.max_length)
        return HubCache()

    @cached_property
    def _separates(self) -> bool:
        """Whether a document has the same states packed behind another one as by itself."""
        device = self.output_weight.device
        ids = torch.tensor([[0, 1, 1, 0]], device=device)
        was_training = self.training
        self.eval()
        with torch.no_grad():
            positions = torch.tensor([[0, 1, 0, 1]], device=device)
            packed = self.backbone.base_model(input_ids=ids, position_ids=positions, use_cache=False)
            alone = self.backbone.base_model(input_ids=ids[:, 2:], use_cache=False)
            difference = (packed.last_hidden_state[:, 2:] - alone.last_hidden_state).abs().max()
        self.train(was_training)
        return bool(difference <= _ROUNDING * alone.last_hidden_state.abs().max())

    @torch.no_grad()
    def _check(self) -> None:
        """Reject architectures that scale or cap their logits, which a loss over hidden states would miss."""
        ids = torch.zeros((1, 2), dtype=torch.int64)
        was_training = self.training
        self.eval()
        difference = (self(ids)["logits"] - self.backbone(ids).logits).abs().max()
        self.train(was_training)
        if not difference <= _TOLERANCE:
            message = f"{self.backbone.config.model_type} changes its logits after the output layer"
            fix = "Choose another architecture, such as Llama, Qwen or GPT-2"
            raise UserError(message, where="model.pretrained", fix=fix)


class HubCache:
    """Keys and values of the tokens so far, and their mask."""

    def __init__(self) -> None:
        from transformers import DynamicCache

        self.keys_and_values: Any = DynamicCache()
        self._mask: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens so far, padding included."""
        return int(self.keys_and_values.get_seq_length())

    def append_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Store the mask of new tokens (B, T) and return that of all tokens."""
        new = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self._mask = new if self._mask is None else torch.cat([self._mask, new], dim=1)
        return self._mask

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows with these indices, in this order."""
        self.keys_and_values.batch_select_indices(rows)
        if self._mask is not None:
            self._mask = self._mask[rows]


def _without_tied(module: Any, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    if module._tied:
        state.pop(prefix + _TIED, None)


def _with_tied(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if module._tied and prefix + _TIED not in state:
        embedding = next(name for name, p in module.named_parameters() if p is module.output_weight)
        state[prefix + _TIED] = state[prefix + embedding]
