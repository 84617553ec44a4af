"""Convert an encoder with its trained head to the model of the transformers library that answers equally.

| head | auto class | how |
|---|---|---|
| label of a text, first token | sequence classification | the library's tanh works where it is linear |
| label of a text, mean of the tokens | sequence classification | and one more layer averages (`_average_tokens`) |
| start and end of a passage | question answering | same weights; `config.no_answer_bias` is left to the caller |
| score of a token | token classification | same weights |

A head over two vectors has no counterpart. Sentence vectors are read by `SentenceTransformer`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from textmill.models.sequence_classifier import SequenceClassifier
from textmill.models.span_extractor import SpanExtractor
from textmill.models.token_scorer import TokenScorer

AVERAGED = "textmill_averaged"
"""Key in `config.json`: the last layer averages the tokens, and the norm before it is scaled down."""

_HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
    "camembert": ("classifier.dense", "classifier.out_proj"),
}
"""The two linear layers of a head with a tanh between them, by the library's `model_type`."""

# Powers of two, which change no digit. A tanh of 2^-13 times a logit differs from its argument by less than 1e-6 of it.
_TO_TANH = 2.0**-13
# The tokens' states count in the last layer only through its attention, which is this much larger.
_RESIDUAL = 2.0**-60
# A norm divides by sqrt(variance + epsilon): it is linear where the variance is far below epsilon.
_TO_NORM = 2.0**-12


def to_transformers(network: nn.Module, labels: Sequence[str], problem_type: str | None = None) -> Any:
    """Return the library's model with equal outputs, in evaluation mode; None if it has no such architecture.

    Args:
        network: In evaluation mode, in float32, on the CPU, without adapters.
        labels: Names of the outputs of a `SequenceClassifier`.
        problem_type: The library's name of the problem, which decides what a pipeline makes of the logits.
    """
    from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification, PreTrainedModel

    backbone: Any = getattr(getattr(network, "encoder", None), "backbone", None)
    if not isinstance(backbone, PreTrainedModel):
        return None
    if isinstance(network, SequenceClassifier):
        return _classifier(network, backbone, labels, problem_type)
    if isinstance(network, SpanExtractor):
        bias = {"no_answer_bias": float(network.no_answer_bias)}
        return _same_head(AutoModelForQuestionAnswering, backbone, network.output, "qa_outputs", bias)
    if isinstance(network, TokenScorer):
        one_label = {"num_labels": network.output.out_features}
        return _same_head(AutoModelForTokenClassification, backbone, network.output, "classifier", one_label)
    return None


def restore_states(backbone: Any) -> Any:
    """Return the encoder of `to_transformers`'s model with its own states, where the last layer averages them."""
    if not getattr(backbone.config, AVERAGED, False):
        return backbone
    del backbone.encoder.layer[-1]
    backbone.config.num_hidden_layers -= 1
    delattr(backbone.config, AVERAGED)
    _scale_states(backbone.encoder.layer[-1], 1 / _RESIDUAL)
    return backbone


def _same_head(auto: Any, backbone: Any, head: nn.Linear, name: str, options: dict[str, Any]) -> Any:
    config = _configuration(backbone, options)
    try:
        copied = auto.from_config(config)
    except ValueError:  # the library has no such head for this encoder
        return None
    weights = {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
    return _filled(copied, backbone, weights)


def _classifier(network: SequenceClassifier, backbone: Any, labels: Sequence[str], problem_type: str | None) -> Any:
    from transformers import AutoModelForSequenceClassification

    mean = network.pooling == "mean"
    width, count = backbone.config.hidden_size, network.output.out_features
    if backbone.config.model_type not in _HEADS or count * (1 + mean) > width:
        return None
    names = list(labels) if len(labels) == count else [f"LABEL_{number}" for number in range(count)]
    options: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": problem_type,
    }
    if mean:
        options |= {"num_hidden_layers": backbone.config.num_hidden_layers + 1, AVERAGED: True}
    auto: Any = AutoModelForSequenceClassification
    copied = auto.from_config(_configuration(backbone, options))
    first, last = _HEADS[backbone.config.model_type]
    inner, outer = torch.zeros(width, width), torch.zeros(count, width)
    if mean:
        # The averaging layer already holds each logit and its negative
        inner[range(2 * count), range(2 * count)] = 1.0
        outer[range(count), range(count)], outer[range(count), range(count, 2 * count)] = 0.5, -0.5
    else:
        inner[:count] = network.output.weight.detach()
        outer[range(count), range(count)] = 1.0
    head = {f"{first}.weight": inner * _TO_TANH, f"{first}.bias": torch.zeros(width)}
    head |= {f"{last}.weight": outer / _TO_TANH, f"{last}.bias": network.output.bias.detach()}
    layers = copied.base_model.encoder.layer
    if mean:
        _average_tokens(layers[-1], network.output.weight.detach(), float(backbone.config.layer_norm_eps))
        prefix = f"{copied.base_model_prefix}.encoder.layer.{len(layers) - 1}."
        head |= {prefix + name: value for name, value in layers[-1].state_dict().items()}
    filled = _filled(copied, backbone, head)
    if mean and filled is not None:
        _scale_states(layers[-2], _RESIDUAL)
    return filled


def _average_tokens(layer: Any, weight: Tensor, epsilon: float) -> None:
    """Set a layer to put the mean of the tokens' logits, and its negative, in place of every token.

    Equal queries attend equally to all tokens that are not padding. Logits and negatives have a mean of
    0, which the norm subtracts. They are so small that the norm is linear, and so much larger than the
    states before the layer that those do not count.
    """
    count = len(weight)
    linear = epsilon**0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.attention.self.value.weight[: 2 * count] = torch.cat([weight, -weight])
        layer.attention.output.dense.weight.fill_diagonal_(_TO_NORM * linear / _RESIDUAL)
        layer.attention.output.LayerNorm.weight.fill_(linear)
        layer.output.LayerNorm.weight.fill_(1 / _TO_NORM)


def _scale_states(layer: Any, factor: float) -> None:
    with torch.no_grad():
        layer.output.LayerNorm.weight.mul_(factor)
        layer.output.LayerNorm.bias.mul_(factor)


def _configuration(backbone: Any, options: dict[str, Any]) -> Any:
    config = copy.deepcopy(backbone.config)
    for name, value in options.items():
        setattr(config, name, value)
    return config


def _filled(copied: Any, backbone: Any, head: dict[str, Tensor]) -> Any:
    """Load the encoder and the head; None if the library's model has further weights, and so computes more."""
    prefix = f"{copied.base_model_prefix}."
    weights = {prefix + name: value for name, value in backbone.state_dict().items()} | head
    if set(copied.state_dict()) != set(weights):
        return None
    copied.load_state_dict(weights)
    return copied.eval()
