from __future__ import annotations

import pytest
import torch
from tiny_training import ARCHITECTURE, MODEL

from textmill.config.sections.train import OptimizerConfig
from textmill.models.base import Model
from textmill.models.sequence_classifier import SequenceClassifier
from textmill.training.optimizer import (
    base_learning_rate,
    build_optimizer,
    build_schedule,
    parameter_groups,
    schedule_factor,
)


def network(**options: object) -> SequenceClassifier:
    model = Model.build(MODEL | {"architecture": ARCHITECTURE} | options)
    return SequenceClassifier(model.build_encoder(None), 3)


def rate_of(groups: list[dict], parameter: torch.nn.Parameter) -> tuple[float, float]:
    found = [group for group in groups if any(one is parameter for one in group["params"])]
    assert len(found) == 1
    return found[0]["lr"], found[0]["weight_decay"]


def test_rates_fall_towards_the_input_and_the_head_has_its_own() -> None:
    net = network()
    config = OptimizerConfig(learning_rate=1e-3, layer_decay=0.5, head_multiplier=4.0, weight_decay=0.1)
    groups = parameter_groups(net, config)
    layers = net.encoder.backbone.encoder.layer
    assert rate_of(groups, net.output.weight) == (4e-3, 0.1)
    assert rate_of(groups, layers[1].output.dense.weight) == (1e-3, 0.1)
    assert rate_of(groups, layers[0].output.dense.weight) == (5e-4, 0.1)
    assert rate_of(groups, net.encoder.backbone.embeddings.word_embeddings.weight) == (2.5e-4, 0.1)


def test_biases_and_norms_do_not_decay() -> None:
    net = network()
    groups = parameter_groups(net, OptimizerConfig(weight_decay=0.1))
    layer = net.encoder.backbone.encoder.layer[0]
    for parameter in (net.output.bias, layer.output.dense.bias, layer.output.LayerNorm.weight):
        assert rate_of(groups, parameter)[1] == 0.0


def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one() -> None:
    net = network(frozen_groups=1)
    listed = [id(parameter) for group in parameter_groups(net, OptimizerConfig()) for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in net.parameters() if parameter.requires_grad)
    assert id(net.encoder.backbone.embeddings.word_embeddings.weight) not in listed


@pytest.mark.parametrize(
    ("schedule", "middle", "late"), [("linear", 0.5, 0.1), ("cosine", 0.5, 0.0245), ("constant", 1.0, 1.0)]
)
def test_the_rate_warms_up_and_decays(schedule: str, middle: float, late: float) -> None:
    config = OptimizerConfig(warmup=0.2, schedule=schedule)  # type: ignore[arg-type]
    factors = [schedule_factor(step, 125, config) for step in range(125)]
    assert factors[0] == pytest.approx(1 / 25)
    assert factors[24] == factors[25] == 1.0
    assert factors[75] == pytest.approx(middle)
    assert factors[115] == pytest.approx(late, abs=1e-3)
    assert min(factors) > 0


def test_no_warmup_starts_at_the_full_rate() -> None:
    assert schedule_factor(0, 10, OptimizerConfig(warmup=0.0)) == 1.0


def test_the_scheduler_moves_all_groups_together() -> None:
    config = OptimizerConfig(learning_rate=1e-3, layer_decay=0.5, head_multiplier=4.0, warmup=0.5)
    optimizer = build_optimizer(network(), config)
    scheduler = build_schedule(optimizer, 8, config)
    assert base_learning_rate(optimizer) == pytest.approx(0.25e-3)
    optimizer.step()
    scheduler.step()
    assert base_learning_rate(optimizer) == pytest.approx(0.5e-3)
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(2e-3)
