"""Correctness against what no one here wrote: the same weights give the same numbers in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoder import VOCABULARY, language_model, router, token_ids
from torch.nn.functional import cross_entropy

from textmill.errors import UserError
from textmill.models.language_model import LanguageModel
from textmill.models.routing.base import build_router
from textmill.models.routing.losses import load_balancing_loss
from textmill.models.to_transformers import matching_model_type, rename_weights, save_as_transformers, to_transformers

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"qk_norm": False}),
    "llama, grouped-query, untied": ("llama", {"qk_norm": False, "n_key_value_heads": 2, "tied": False}),
    "qwen3": ("qwen3", {"qk_norm": True}),
    "qwen3, wide heads, grouped-query": ("qwen3", {"qk_norm": True, "head_width": 12, "n_key_value_heads": 1}),
    "mixtral": ("mixtral", {"qk_norm": False, "router": router("top_k")}),
    "qwen3_moe": ("qwen3_moe", {"router": router("top_k", normalised=False)}),
    "qwen3_moe, one layer dense": (
        "qwen3_moe",
        {"router": router("top_k", k=3), "experts": {"n_experts": 4, "first_layer": 1}},
    ),
    "switch as qwen3_moe": ("qwen3_moe", {"router": router("switch")}),
    "sinkhorn as qwen3_moe": ("qwen3_moe", {"router": router("sinkhorn")}),
    "dots1": (
        "dots1",
        {"router": router("sigmoid_bias"), "experts": {"n_experts": 4, "shared_experts": 1, "first_layer": 1}},
    ),
    "glm4_moe": (
        "glm4_moe",
        {"qk_norm": False, "router": router("sigmoid_bias"), "experts": {"n_experts": 4, "shared_experts": 2}},
    ),
    "dots1 without shared experts": ("dots1", {"router": router("sigmoid_bias", k=1, normalised=False)}),
}


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_logits_and_gradients_equal(case: str) -> None:
    model_type, options = ARCHITECTURES[case]
    model = language_model(**options).eval()
    assert matching_model_type(model) == model_type
    other = to_transformers(model)
    ids = token_ids()
    ours, theirs = model(ids)["logits"], other(input_ids=ids).logits
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    loss_of(ours, ids).backward()
    loss_of(theirs, ids).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {name: parameter.grad for name, parameter in other.named_parameters() if parameter.numel()}
    found = rename_weights(gradients, model.architecture)
    assert set(expected) <= set(found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


def test_padded_input_equals_llama() -> None:
    model = language_model(qk_norm=False).eval()
    ids = token_ids()
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, 9:] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        ours = model(ids, attention_mask=mask)["logits"]
        theirs = to_transformers(model)(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], **TOLERANCE)


@pytest.mark.parametrize(
    "case",
    ["llama, grouped-query, untied", "qwen3", "mixtral", "qwen3_moe", "dots1 without shared experts", "glm4_moe"],
)
def test_saved_checkpoint_is_loaded_by_auto_class(case: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = language_model(**ARCHITECTURES[case][1]).eval()
    save_as_transformers(model, tmp_path, eos_token_id=3, bos_token_id=3)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.eos_token_id == 3 and loaded.config.vocab_size == VOCABULARY
    ids = token_ids()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(ids)["logits"], **TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {"router": router("hash")},
        {"router": router("expert_choice")},
        {"router": router("soft")},
        {"router": router("switch"), "qk_norm": False},
        {"router": router("top_k"), "experts": {"n_experts": 4, "shared_experts": 1}},
    ],
)
def test_no_matching_architecture_is_said(options: dict[str, Any], tmp_path: Path) -> None:
    model: LanguageModel = language_model(**options)
    assert matching_model_type(model) is None
    with pytest.raises(UserError, match="transformers has no architecture"):
        save_as_transformers(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def states(batch: int = 1, length: int = 20) -> torch.Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(2))


def test_switch_router_equals_transformers_with_and_without_capacity() -> None:
    import transformers
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

    for capacity_factor, capacity in ((None, 1000), (0.8, 4)):
        config = SwitchTransformersConfig(hidden_size=16, d_model=16, num_experts=4, expert_capacity=capacity)
        theirs = SwitchTransformersTop1Router(config)
        ours = build_router(router("switch", balance=0.0, z=0.0), 16, 4, 0)
        with torch.no_grad():
            ours.gate.weight.normal_()
            theirs.classifier.weight.copy_(ours.gate.weight)
        x = states()
        one_hot, probability, logits = theirs(x)
        if logits.size(-1) != 4:  # 5.17 gives the largest probability in its place, and counts no capacity
            pytest.skip(f"the Switch router of transformers {transformers.__version__} gives no logits")
        assignment = ours(x, torch.zeros(1, 20, dtype=torch.long), capacity_factor).assignment
        torch.testing.assert_close(ours.logits(x), logits.flatten(0, 1), **TOLERANCE)
        token, expert = one_hot[0].nonzero(as_tuple=True)
        order = expert.argsort(stable=True)
        assert torch.equal(assignment.tokens, token[order])
        assert torch.equal(assignment.counts, one_hot.sum(dim=(0, 1)))
        torch.testing.assert_close(assignment.weights, probability[0, token[order], 0], **TOLERANCE)
        weighing = torch.linspace(0, 1, len(token))
        (assignment.weights * weighing).sum().backward()
        (probability[0, token[order], 0] * weighing).sum().backward()
        torch.testing.assert_close(ours.gate.weight.grad, theirs.classifier.weight.grad, **TOLERANCE)


@pytest.mark.parametrize("normalised", [True, False])
def test_sigmoid_bias_equals_router_of_deepseek_v3(normalised: bool) -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(
        hidden_size=16,
        n_routed_experts=6,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        norm_topk_prob=normalised,
    )
    theirs = DeepseekV3TopkRouter(config)
    ours = build_router(router("sigmoid_bias", normalised=normalised), 16, 6, 0)
    with torch.no_grad():
        ours.gate.weight.normal_()
        ours.bias.uniform_(-0.5, 0.5)
        theirs.weight.copy_(ours.gate.weight)
        theirs.e_score_correction_bias.copy_(ours.bias)
    x = states(batch=2)
    _, weights, experts = theirs(x)
    assignment = ours(x, torch.zeros(2, 20, dtype=torch.long), None).assignment
    dense_ours = torch.zeros(40, 6).index_put(
        (assignment.tokens, torch.repeat_interleave(torch.arange(6), assignment.counts)), assignment.weights
    )
    dense_theirs = torch.zeros(40, 6).scatter(1, experts, weights)
    torch.testing.assert_close(dense_ours, dense_theirs, **TOLERANCE)
    weighing = torch.linspace(0, 1, 240).view(40, 6)
    (dense_ours * weighing).sum().backward()
    (dense_theirs * weighing).sum().backward()
    torch.testing.assert_close(ours.gate.weight.grad, theirs.weight.grad, **TOLERANCE)


def test_load_balancing_loss_equals_that_of_mixtral() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    chosen = logits.topk(2).indices
    ours = load_balancing_loss(logits.softmax(-1), torch.bincount(chosen.flatten(), minlength=6))
    theirs = load_balancing_loss_func((logits,), num_experts=6, top_k=2)
    torch.testing.assert_close(ours * 2, theirs, **TOLERANCE)  # theirs counts both choices of a token
