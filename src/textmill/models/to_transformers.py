"""Convert a trained language model to a checkpoint of the transformers library with the same architecture.

| attention | feed-forward | in transformers |
|---|---|---|
| plain | dense | Llama |
| QK-norm | dense | Qwen3 |
| plain | experts in every layer, softmax router with normalised weights | Mixtral |
| QK-norm | experts, softmax router | Qwen3-MoE |
| plain | experts, sigmoid router, shared experts or none | GLM-4-MoE |
| QK-norm | the same | dots1 |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textmill.errors import UserError
from textmill.models.architecture import Architecture
from textmill.models.experts import MixtureOfExperts
from textmill.models.hub_language_model import HubLanguageModel
from textmill.models.language_model import LanguageModel


def matching_model_type(model: LanguageModel) -> str | None:
    """Return transformers' `model_type` with the same outputs in evaluation, or None."""
    if isinstance(model, HubLanguageModel):
        return str(model.backbone.config.model_type)
    shape = model.architecture
    if shape.feed_forward == "dense":
        return "qwen3" if shape.qk_norm else "llama"
    mixtures = model.mixtures()
    rule = next(iter(mixtures.values())).router.token_rule if mixtures else None
    if rule is None:
        return None
    if rule.score == "sigmoid" and shape.experts.every == 1:
        return "dots1" if shape.qk_norm else "glm4_moe"
    if rule.score == "softmax" and not shape.experts.shared_experts:
        if shape.qk_norm:
            return "qwen3_moe"
        if rule.normalised and len(mixtures) == shape.n_layers:
            return "mixtral"
    return None


def save_as_transformers(model: LanguageModel, folder: Path, **options: Any) -> None:
    """Write `config.json` and safetensors weights that `AutoModelForCausalLM.from_pretrained` loads.

    `options` are further values of the configuration, such as `eos_token_id`.

    Raises:
        UserError: transformers does not have this architecture.
    """
    to_transformers(model, **options).save_pretrained(folder)


def to_transformers(model: LanguageModel, **options: Any) -> Any:
    """Return the model as transformers' `PreTrainedModel` with equal logits, in evaluation mode.

    `options` and the error raised are those of `save_as_transformers`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if isinstance(model, HubLanguageModel):
        return model.backbone
    model_type = matching_model_type(model)
    if model_type is None:
        router = str((model.architecture.router or {}).get("_target_", "")).rpartition(".")[2]
        message = f"transformers has no architecture with a {router} router and these experts"
        fix = "Export the model in Textmill's format, or train with `router: top_k` or `router: sigmoid_bias`"
        raise UserError(message, where="model", fix=fix)
    config = AutoConfig.for_model(model_type, **(_configuration(model, model_type) | options))
    causal_model: Any = AutoModelForCausalLM
    copy = causal_model.from_config(config, dtype=model.output_weight.dtype)
    # Without shared experts, transformers has an empty expert for which we have no weights
    empty = {name: tensor for name, tensor in copy.state_dict().items() if not tensor.numel()}
    copy.load_state_dict(empty | rename_weights(model.state_dict(), model.architecture))
    return copy.eval()


def rename_weights(weights: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return the weights of a `LanguageModel`, or their gradients, under transformers' names."""
    head = architecture.width_of_head
    query_key_value = [head * heads for heads in (architecture.n_heads, *[architecture.key_value_heads] * 2)]

    def translated() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights.items():
            place, _, last = name.replace("decoder.blocks.", "model.layers.").partition(".feed_forward.")
            if last:
                yield from _feed_forward(f"{place}.mlp", last, tensor)
            elif name.endswith("query_key_value.weight"):
                where = place.replace("attention.query_key_value", "self_attn.{}_proj")
                for letter, part in zip("qkv", torch.split(tensor, query_key_value), strict=True):
                    yield where.format(letter), part
            else:
                yield _elsewhere(place), tensor

    result = dict(translated())
    result.setdefault("lm_head.weight", result["model.embed_tokens.weight"])
    return {name: tensor.contiguous() for name, tensor in result.items()}


_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "decoder.norm.weight": "model.norm.weight",
}
_PARTS = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
}


def _elsewhere(name: str) -> str:
    """Return the name of a weight outside feed-forward networks that is not split."""
    if name in _NAMES:
        return _NAMES[name]
    models, layers, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"{models}.{layers}.{layer}.{_PARTS[part]}.weight"


def _feed_forward(place: str, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name == "router.gate.weight":
        yield f"{place}.gate.weight", tensor
    elif name == "router.bias":
        yield f"{place}.gate.e_score_correction_bias", tensor
    elif name.startswith("experts."):
        yield f"{place}.{name}_proj", tensor
    elif not name.startswith("router."):  # weights of a router for training only are dropped
        name = name.replace("shared.", "shared_experts.")
        if name.endswith("gate_up.weight"):
            gate, up = tensor.chunk(2)
            yield f"{place}.{name.replace('gate_up', 'gate_proj')}", gate
            yield f"{place}.{name.replace('gate_up', 'up_proj')}", up
        else:
            yield f"{place}.{name.replace('down', 'down_proj')}", tensor


def _configuration(model: LanguageModel, model_type: str) -> dict[str, Any]:
    shape = model.architecture
    values: dict[str, Any] = {
        "vocab_size": model.vocabulary_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.dense_width,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.width_of_head,
        "max_position_embeddings": shape.max_length,
        "rms_norm_eps": shape.norm_epsilon,
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base, "partial_rotary_factor": 1.0},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if mixtures := model.mixtures():
        values |= _experts_configuration(model, model_type, mixtures)
    return values


def _experts_configuration(
    model: LanguageModel, model_type: str, mixtures: dict[int, MixtureOfExperts]
) -> dict[str, Any]:
    shape = model.architecture
    mixture = next(iter(mixtures.values()))
    rule = mixture.router.token_rule
    assert rule is not None
    hidden_width = mixture.experts.down.size(-1)
    values: dict[str, Any] = {"num_experts_per_tok": rule.k}
    if model_type == "mixtral":
        n_experts = {"num_local_experts": shape.experts.n_experts}
        return values | n_experts | {"intermediate_size": hidden_width, "sliding_window": None}
    values["norm_topk_prob"] = rule.normalised
    values["moe_intermediate_size"] = hidden_width
    if model_type == "qwen3_moe":
        dense = [layer for layer in range(shape.n_layers) if layer not in mixtures]
        return values | {"num_experts": shape.experts.n_experts, "mlp_only_layers": dense, "decoder_sparse_step": 1}
    values |= {
        "n_routed_experts": shape.experts.n_experts,
        "n_shared_experts": shape.experts.shared_experts,
        "first_k_dense_replace": shape.experts.first_layer,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
    }
    if model_type == "dots1":
        values |= {"sliding_window": None, "layer_types": ["full_attention"] * shape.n_layers}
    return values
