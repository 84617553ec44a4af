"""Activation checkpointing and compilation of a network's layers."""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from textmill.files import read_json, write_json
from textmill.training import random_state

log = logging.getLogger("textmill")

_TRIAL_STEPS = 5
_NOTE = "compiled.json"
_WEIGHTY = 1e-3
"""Gradients below this share of the largest one's norm are not compared."""
_ALIKE = (0.3, 3.0)
"""Ratio of the norms of a parameter's gradient, compiled and plain; dropout alone changes it."""


def layer_stack(network: nn.Module) -> list[nn.Module]:
    """Return the network's layers: the members of its largest `ModuleList`, and of others with the same class.

    An encoder-decoder has two such lists.
    """
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    largest = max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()), default=None)
    if largest is None:
        return []
    return [layer for stack in stacks if type(stack[0]) is type(largest[0]) for layer in stack]


def checkpoint_activations(network: nn.Module) -> None:
    """Let every layer store only its input, and recompute its activations in the backward pass (Chen et al. 2016)."""
    for layer in layer_stack(network):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(network: nn.Module) -> None:
    """Compile each layer by torch.compile. Layers of one shape share kernels; the names of weights do not change."""
    for layer in layer_stack(network):
        layer.compile(dynamic=False)


class LayerCompiler(Callback):
    """Compiles the layers before the first step if the machine can, and for `auto` if it saves time.

    The decision is stored beside the checkpoints, so that a resumed training keeps it.

    Args:
        how: `auto` considers compilation on a GPU only; on a CPU the compiler takes minutes.
        folder: Folder of the checkpoints.
    """

    def __init__(self, how: Literal["auto", "on"], folder: Path) -> None:
        self._how = how
        self._note = folder / _NOTE

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide, and compile."""
        device = pl_module.device
        if not _has_compiler(device) or (self._how == "auto" and device.type == "cpu"):
            return
        if self._how == "auto" and isinstance(pl_module, FSDPModule):
            log.info("train.compile: auto tries it on a copy, which sharded weights do not allow; training without it")
            return
        # This logger repeats the stack trace of errors that torch also raises.
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
        network: nn.Module = pl_module.network  # type: ignore[assignment]
        if self._how == "auto" and not self._note.is_file():
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            batch = pl_module.transfer_batch_to_device(data.first_batch(), device, 0)
            module: Any = pl_module
            loss = partial(module.loss_of, batch=batch)
            saves_time = _saves_time(network, loss, data.optimizer_steps(trainer.max_epochs))
            write_json(self._note, {"compiled": saves_time})
        if self._how == "on" or read_json(self._note)["compiled"]:
            compile_layers(network)


def _saves_time(network: nn.Module, loss: Callable[[nn.Module], Tensor], steps: int) -> bool:
    """Return whether compilation plus compiled steps take less time than plain ones, measured on a copy.

    A compiler that gives other gradients is refused.
    """
    states = random_state.capture()
    trial = copy.deepcopy(network)
    try:
        plain = _seconds(trial, loss)
        expected = _gradient_norms(trial, loss)
        compile_layers(trial)
        started = time.perf_counter()
        _seconds(trial, loss, steps=1)
        compilation = time.perf_counter() - started
        compiled = _seconds(trial, loss)
        if wrong := _differing(expected, _gradient_norms(trial, loss)):
            log.warning("torch.compile gives another gradient of %s; training without it", wrong)
            return False
    except Exception as error:  # training works without the compiler, whatever its error
        log.info("torch.compile fails (%s); training without it", type(error).__name__)
        return False
    finally:
        random_state.restore(states)
    times = 1e3 * plain, 1e3 * compiled, compilation
    log.info("a step takes %.1f ms plain and %.1f ms compiled; compilation takes %.0f s", *times)
    return compilation + steps * compiled < steps * plain


def _seconds(network: nn.Module, loss: Callable[[nn.Module], Tensor], steps: int = _TRIAL_STEPS) -> float:
    """Return the mean time of a forward and backward pass, after one that warms up."""
    for number in range(steps + 1):
        if number == 1:
            _synchronise()
            started = time.perf_counter()
        loss(network).backward()  # type: ignore[no-untyped-call]
        network.zero_grad()
    _synchronise()
    return (time.perf_counter() - started) / steps


def _gradient_norms(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, float]:
    loss(network).backward()  # type: ignore[no-untyped-call]
    norms = {name: float(p.grad.norm()) for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return norms


def _differing(expected: dict[str, float], found: dict[str, float]) -> str:
    """Return the name of a parameter whose gradient has a clearly different norm, or ''."""
    least = _WEIGHTY * max(expected.values(), default=0.0)
    weighty = {name: norm for name, norm in expected.items() if norm > least}
    low, high = _ALIKE
    return next((name for name, norm in weighty.items() if not low < found.get(name, 0.0) / norm < high), "")


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _has_compiler(device: torch.device) -> bool:
    """Return whether torch.compile has its backend: Triton on a GPU, a C++ compiler on a CPU."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))
