"""Documents packed into rows for models of transformers: each is read as if it were alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from textmill.errors import UserError
from textmill.models.hub_language_model import HubLanguageModel
from textmill.tasks.language_modelling import LanguageModelling

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = SMALL | {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA | {"head_dim": 8},
    "gpt2": {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": SMALL | {"intermediate_size": 64, "max_position_embeddings": 64},
}
LENGTHS = (7, 1, 12, 3, 1, 9)


def model_of(kind: str, attention: str = "sdpa") -> HubLanguageModel:
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    return HubLanguageModel(
        auto.from_config(AutoConfig.for_model(kind, **SHAPES[kind]), attn_implementation=attention)
    ).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", SHAPES)
def test_packed_documents_have_the_loss_and_gradients_of_single_ones(kind: str, attention: str) -> None:
    model = model_of(kind, attention)
    draw = torch.Generator().manual_seed(1)
    documents = [torch.randint(50, (length,), generator=draw) for length in LENGTHS]
    ids = torch.cat(documents)[None]
    numbers = torch.cat([torch.full((length,), n) for n, length in enumerate(LENGTHS)])[None]

    def total(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = states[:-1] @ model.output_weight.T
        return torch.nn.functional.cross_entropy(logits, targets[1:], reduction="sum")

    packed = model.hidden_states(ids, document_ids=numbers).states[0]
    begins = [0, *itertools.accumulate(LENGTHS)]
    together = sum(total(packed[start:end], ids[0, start:end]) for start, end in itertools.pairwise(begins))
    alone = sum(total(model.hidden_states(one[None]).states[0], one) for one in documents)
    assert isinstance(together, torch.Tensor) and isinstance(alone, torch.Tensor)
    assert abs((together - alone).item()) / alone.item() <= 1e-5
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for first, second in zip(
        torch.autograd.grad(together, parameters), torch.autograd.grad(alone, parameters), strict=True
    ):
        assert torch.allclose(first, second, atol=1e-4, rtol=1e-4)
    mixed = model.hidden_states(ids).states[0]
    assert (mixed[LENGTHS[0] :] - packed[LENGTHS[0] :]).abs().max() > 1e-3  # without numbers, documents see others


def test_task_packs_for_a_model_of_transformers() -> None:
    """The window's loss is that of its documents, and of the prediction of the second one's first token."""
    model, task = model_of("llama"), LanguageModelling.from_options()
    row, documents = [3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 0, 0, 0, 0, 1, 1, 1, 1]

    def nats(ids: list[int], of: list[int]) -> torch.Tensor:
        return task.loss(model, task.collate({"input_ids": [ids], "document_ids": [of]})).outputs["nll"].sum()

    parts = nats(row[:6], [0] * 6) + nats(row[5:], [0] * 4)
    assert torch.allclose(nats(row, documents), parts, rtol=1e-5)


def test_architecture_that_mixes_documents_is_refused() -> None:
    model = model_of("llama")
    base = model.backbone.model.forward
    model.backbone.model.forward = lambda position_ids=None, **options: base(**options)  # ignores positions
    with pytest.raises(
        UserError, match=r"llama of transformers mixes documents packed into a row\. Set task\.separate"
    ):
        model.hidden_states(torch.tensor([[1, 2, 3]]), document_ids=torch.tensor([[0, 0, 1]]))
