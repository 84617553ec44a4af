"""Low-rank updates beside frozen weights: what is trained, saved, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from textmill.errors import UserError
from textmill.models.lora import LoraConfig, merge_adapters, without_adapters
from textmill.models.pretrained_decoder import PretrainedDecoder
from textmill.models.pretrained_encoder import PretrainedEncoder
from textmill.models.sequence_classifier import SequenceClassifier
from textmill.training.layers import checkpoint_activations
from textmill.training.loading import load_network, save_network

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("llama") / "model")


def classifier(pretrained: Path, **options: Any) -> SequenceClassifier:
    torch.manual_seed(0)
    model = PretrainedEncoder.from_options(hidden_dropout=0.0, attention_dropout=0.0, dropout=0.0, **options)
    return SequenceClassifier(model.build_encoder(pretrained), 2)


def batch(rows: int = 4, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 40, (rows, length), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


def step(network: torch.nn.Module, loss: torch.Tensor) -> None:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    loss.backward()
    optimizer.step()


def test_only_updates_and_head_are_trained(pretrained: Path) -> None:
    network = classifier(pretrained, lora=LORA)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"output.weight", "output.bias"}
    assert any("query" in name for name in trained) and any("intermediate" in name for name in trained)
    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    plain = classifier(pretrained)
    plain.output.load_state_dict(network.output.state_dict())
    torch.testing.assert_close(network(*batch())["logits"], plain(*batch())["logits"])  # updates start at zero
    for _ in range(2):
        step(network, network(*batch())["logits"].logsumexp(dim=1).sum())
    assert all(torch.equal(frozen[name], p) for name, p in network.named_parameters() if name in frozen)
    assert not torch.allclose(network(*batch())["logits"], plain(*batch())["logits"])


def test_merged_weights_answer_the_same_and_are_those_of_a_plain_encoder(pretrained: Path) -> None:
    network = classifier(pretrained, lora=LORA | {"targets": ["query", "value"]})
    for _ in range(2):
        step(network, network(*batch())["logits"].logsumexp(dim=1).sum())
    expected = network.eval()(*batch())["logits"]
    merge_adapters(network)
    torch.testing.assert_close(network(*batch())["logits"], expected, atol=1e-5, rtol=1e-5)
    plain = classifier(pretrained).eval()
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(plain(*batch())["logits"], expected, atol=1e-5, rtol=1e-5)
    assert without_adapters({"_target_": "x", "lora": LORA}) == {"_target_": "x"}


def test_a_saved_network_holds_its_updates(pretrained: Path, tmp_path: Path) -> None:
    from textmill.tasks.text_classification import TextClassification

    task, state = TextClassification.from_options(), {"labels": ["a", "b"]}
    model = PretrainedEncoder.from_options(lora=LORA)
    network = task.build_network(model, pretrained, state)
    step(network, network(*batch())["logits"].logsumexp(dim=1).sum())
    save_network(tmp_path / "model", network, network.state_dict())
    loaded = load_network(task, model, state, tmp_path)
    torch.testing.assert_close(loaded(*batch())["logits"], network.eval()(*batch())["logits"])


def test_add_adapters_unknown_layer_is_named(pretrained: Path) -> None:
    with pytest.raises(UserError, match=r"no linear layer is named q_proj.*Choose from dense, key, query"):
        classifier(pretrained, lora={"targets": ["q_proj"]})


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_causal_model_of_the_hub_is_adapted_and_merged(llama: Path, checkpointed: bool) -> None:
    torch.manual_seed(0)
    model: Any = PretrainedDecoder.from_options(lora=LORA).build_decoder(60, llama)
    plain: Any = PretrainedDecoder.from_options().build_decoder(60, llama)
    if checkpointed:
        checkpoint_activations(model.train())
    ids = batch()[0]
    torch.testing.assert_close(model(ids)["logits"], plain(ids)["logits"])
    for _ in range(2):
        step(model, model(ids)["logits"].logsumexp(dim=-1).sum())
    expected = model.eval()(ids)["logits"]
    assert not torch.allclose(expected, plain(ids)["logits"])
    merge_adapters(model)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.eval()(ids)["logits"], expected, atol=1e-5, rtol=1e-5)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="rank"):
        LoraConfig(rank=0)
