"""Layers whose activations are computed again, and when they are compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from tiny_decoder import language_model, router
from torch._dynamo.testing import CompileCounter

from textmill.files import write_json
from textmill.models import experts, transformer
from textmill.training import layers
from textmill.training.layers import LayerCompiler, layer_stack


@pytest.mark.parametrize("options", [{}, {"router": router("hash")}])
def test_layers_share_what_is_compiled(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without content, which take the paths of a GPU but know no autocast."""
    for module in (experts, transformer):
        monkeypatch.setattr(module, "compute_dtype", lambda states: states.dtype)
    counter = CompileCounter()
    with torch.device("meta"):
        model = language_model(n_layers=3, **options).bfloat16()
        for layer in layer_stack(model):
            layer.compile(dynamic=False, backend=counter)
        model(torch.zeros(2, 12, dtype=torch.long))
    assert counter.frame_count == 1, "three layers, one kernel, and no break in it"


class _Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = language_model()


def test_layers_are_compiled_where_there_is_a_compiler_and_not_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    module = _Module()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    LayerCompiler("on", tmp_path).on_train_start(None, module)  # type: ignore[arg-type]
    assert compiled == []
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/c++")
    LayerCompiler("auto", tmp_path).on_train_start(None, module)  # type: ignore[arg-type]
    assert compiled == [], "on a CPU compiling takes longer than it saves"
    LayerCompiler("on", tmp_path).on_train_start(None, module)  # type: ignore[arg-type]
    assert compiled == layer_stack(module.network)


def test_a_resumed_training_keeps_to_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    monkeypatch.setattr(layers, "_has_compiler", lambda _: True)
    module = _Module()
    monkeypatch.setattr(_Module, "device", property(lambda _: torch.device("cuda")))
    for decision in (False, True):
        write_json(tmp_path / "compiled.json", {"compiled": decision})
        LayerCompiler("auto", tmp_path).on_train_start(None, module)  # type: ignore[arg-type]
        assert bool(compiled) == decision


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("options", [{}, {"router": router("hash")}])
def test_compiled_layers_give_the_same_gradients(device: str, options: dict[str, Any]) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    torch.manual_seed(3)
    model = language_model(max_length=256, **options).to(device)
    ids = torch.randint(29, (2, 256), device=device)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            torch.nn.functional.cross_entropy(model(ids)["logits"].flatten(0, 1), ids.flatten().roll(-1)).backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    plain = gradients()
    layers.compile_layers(model)
    compiled = gradients()
    assert compiled.keys() == plain.keys()
    for name, gradient in plain.items():
        assert float((compiled[name] - gradient).norm() / gradient.norm()) < 0.05, name


class _Forgetful(torch.nn.Linear):
    """Passes no gradient on to its weight where it is compiled."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight = self.weight.detach() if torch.compiler.is_compiling() else self.weight
        return torch.nn.functional.linear(states, weight, self.bias)


@pytest.mark.slow
def test_compiler_with_other_gradients_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    network = torch.nn.Sequential()
    network.layers = torch.nn.ModuleList([_Forgetful(8, 8), _Forgetful(8, 8)])
    rows = torch.randn(4, 8)

    def loss(model: torch.nn.Module) -> torch.Tensor:
        states = rows
        for layer in model.layers:  # type: ignore[union-attr]
            states = layer(states)
        return states.square().mean()

    assert not layers._saves_time(network, loss, steps=10**9)
    assert "torch.compile gives another gradient of layers.0.weight; training without it" in caplog.text
