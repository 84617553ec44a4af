"""How a network's layers are run in training: with their activations kept or not, compiled or not."""

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
from torch.utils.checkpoint import checkpoint

from textmill.files import read_json, write_json
from textmill.training import random_state

log = logging.getLogger("textmill")

_TRIAL_STEPS = 5
_NOTE = "compiled.json"


def layer_stack(network: nn.Module) -> list[nn.Module]:
    """The network's layers: the members of its largest `ModuleList`, and of others that hold the same kind.

    An encoder-decoder has two.
    """
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    largest = max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()), default=None)
    if largest is None:
        return []
    return [layer for stack in stacks if type(stack[0]) is type(largest[0]) for layer in stack]


def checkpoint_activations(network: nn.Module) -> None:
    """Let every layer keep what it is given only, and compute the rest again (Chen et al. 2016)."""
    for layer in layer_stack(network):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(network: nn.Module) -> None:
    """Let torch.compile make the layers' kernels. Layers of one shape share them, names stay as they are."""
    for layer in layer_stack(network):
        layer.compile(dynamic=False)


class LayerCompiler(Callback):
    """Compiles the layers before the first step if that is possible here, and for `auto` if it saves time.

    A training that is resumed goes on as it began: what was found is noted beside its checkpoints.

    Args:
        how: `auto` tries it on a GPU only; on a CPU the compiler takes minutes.
        folder: Of the checkpoints.
    """

    def __init__(self, how: Literal["auto", "on"], folder: Path) -> None:
        self._how = how
        self._note = folder / _NOTE

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide, and compile."""
        device = pl_module.device
        if not _has_compiler(device) or (self._how == "auto" and device.type == "cpu"):
            return
        # It prints the whole stack of an error that it raises too.
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
        network: nn.Module = pl_module.network  # type: ignore[assignment]
        if self._how == "auto" and not self._note.is_file():
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            batch = pl_module.transfer_batch_to_device(data.first_batch(), device, 0)
            module: Any = pl_module
            loss = partial(module.loss_of, batch=batch)
            wanted = _pays(network, loss, data.optimizer_steps(trainer.max_epochs))
            write_json(self._note, {"compiled": wanted})
        if self._how == "on" or read_json(self._note)["compiled"]:
            compile_layers(network)


def _pays(network: nn.Module, loss: Callable[[nn.Module], Tensor], steps: int) -> bool:
    """Whether compiling a copy and training with it takes less time than training without."""
    states = random_state.capture()
    trial = copy.deepcopy(network)
    try:
        plain = _seconds(trial, loss)
        compile_layers(trial)
        started = time.perf_counter()
        _seconds(trial, loss, steps=1)
        making = time.perf_counter() - started
        compiled = _seconds(trial, loss)
    except Exception as error:  # whatever the compiler stumbles over, training goes on without it
        log.info("torch.compile fails here (%s); training without it", type(error).__name__)
        return False
    finally:
        random_state.restore(states)
    log.info("a step takes %.1f ms, compiled %.1f ms after %.0f s", 1e3 * plain, 1e3 * compiled, making)
    return making + steps * compiled < steps * plain


def _seconds(network: nn.Module, loss: Callable[[nn.Module], Tensor], steps: int = _TRIAL_STEPS) -> float:
    """Mean time of a forward and a backward pass, after one that does not count."""
    for number in range(steps + 1):
        if number == 1:
            _wait()
            started = time.perf_counter()
        loss(network).backward()  # type: ignore[no-untyped-call]
        network.zero_grad()
    _wait()
    return (time.perf_counter() - started) / steps


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _has_compiler(device: torch.device) -> bool:
    """Whether what torch.compile needs is there: Triton on a GPU, a C++ compiler on a CPU."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))
