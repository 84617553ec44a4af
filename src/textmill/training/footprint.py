"""Memory and floating-point operations of a training step, counted on tensors without data.

A step runs once under PyTorch's `FakeTensorMode`: shapes and lifetimes of all tensors are real, values are not, so that
a model larger than the machine can be counted. `torch.utils.flop_counter` counts the matrix products.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from textmill.config.sections.train import Precision, TrainConfig
from textmill.tasks.base import State, Task
from textmill.training.layers import checkpoint_activations
from textmill.training.optimizer import build_optimizer

PARTS = ("weights", "gradients", "optimizer", "average", "activations", "logits", "temporary")
"""Parts of the peak memory: `average` is the moving average of the weights, `temporary` is freed within a layer."""


@dataclass(frozen=True)
class Footprint:
    """Costs of one training step with one batch.

    Attributes:
        rows: Rows of the batch.
        positions: Positions of its `input_ids`, with padding.
        flops: Floating-point operations of the forward and the backward pass.
        forward_flops: Those of the forward pass.
        optimizer_flops: Those of the optimizer's matrix products.
        kernels: Operations that start a kernel, in both passes.
        products: Matrix products of different shapes, in both passes.
        memory: Bytes at the peak, by `PARTS`.
    """

    rows: int
    positions: int
    flops: int
    forward_flops: int
    optimizer_flops: int
    kernels: int
    products: int
    memory: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch."""
        return sum(self.memory[name] for name in ("weights", "gradients", "optimizer", "average"))


@dataclass(frozen=True)
class Counts:
    """Parameters of a network: all, those that are trained, and those that one token passes."""

    parameters: int
    trainable: int
    active: int


class Tracer:
    """Counts the steps of a training on batches.

    Args:
        task: Computes the loss.
        build: Builds the network; it is called once, without data.
        state: What the task learned in `prepare`.
        config: The `train` section.
        precision: Number format.

    Attributes:
        counts: Parameters of the network.
    """

    def __init__(
        self, task: Task, build: Callable[[], nn.Module], state: State, config: TrainConfig, precision: Precision
    ) -> None:
        self._task = task
        self._build = build
        self._config = config
        self._precision = precision
        self._vocabulary = int(state.get("vocabulary_size") or len(state.get("labels") or ()) or 0)
        self._fake: FakeTensorMode | None = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self._make()

    def _make(self) -> None:
        with torch.random.fork_rng(devices=[]), self._fake or nullcontext():
            self._network = self._build().train()
            if self._precision == "bf16-true":
                self._network.to(torch.bfloat16)
        if self._config.activation_checkpointing:
            checkpoint_activations(self._network)
        self.counts = count_parameters(self._network)

    def trace(self, batch: Mapping[str, Tensor]) -> Footprint:
        """Count a step with a collated batch.

        Where a layer's shapes depend on values, as in a mixture of experts with limited places, the step runs on
        real tensors on the CPU.
        """
        if self._fake is not None:
            try:
                return self._trace(batch)
            except (GuardOnDataDependentSymNode, RuntimeError, NotImplementedError):
                self._fake = None
                self._make()
        return self._trace(batch)

    def _trace(self, batch: Mapping[str, Tensor]) -> Footprint:
        network, config = self._network, self._config
        fixed = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
        counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
        memory = _Allocations(fixed, self._vocabulary)
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            if self._fake is not None:
                stack.enter_context(self._fake)
                batch = {name: torch.empty_like(each, device="cpu") for name, each in batch.items()}
            stack.enter_context(counter)
            stack.enter_context(memory)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._precision in ("bf16-mixed", "16-mixed")):
                with torch.autograd.graph.saved_tensors_hooks(memory.save, lambda tensor: tensor):
                    loss = self._task.loss(network, batch).loss
                forward = counter.get_total_flops()
            loss.backward()  # type: ignore[no-untyped-call]
            flops, kernels, at_peak = counter.get_total_flops(), memory.kernels, memory.by_part(network)
            products = len(memory.products)
            gradients = sum(p.grad.untyped_storage().nbytes() for p in network.parameters() if p.grad is not None)
            del loss
            memory.restart()
            state, steps = self._step(network, config), 0
            steps = max(0, memory.peak - memory.start - state)
            optimizer_flops = counter.get_total_flops() - flops
            network.zero_grad(set_to_none=True)
        if gradients + steps > sum(at_peak.values()):
            at_peak = {"gradients": gradients, "activations": 0, "logits": 0, "temporary": steps}
        own = {
            "weights": sum(
                t.untyped_storage().nbytes() for t in _distinct((*network.parameters(), *network.buffers()))
            ),
            "optimizer": state,
            "average": 0 if config.ema_decay is None else _size(p for p in network.parameters() if p.requires_grad),
        }
        found = own | at_peak
        rows, positions = len(batch["input_ids"]), batch["input_ids"].numel()
        parts = {name: found[name] for name in PARTS}
        return Footprint(rows, positions, flops, forward, optimizer_flops, kernels, products, parts)

    def _step(self, network: nn.Module, config: TrainConfig) -> int:
        """Take a step of the optimizer; return the bytes of its state."""
        optimizer = build_optimizer(network, config.optimizer, fused=self._fake is None)
        optimizer.step()
        tensors = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]
        return _size(tensors)


def count_parameters(network: nn.Module) -> Counts:
    """Count the parameters of a network; all are active but the experts that a token does not pass."""
    total = sum(parameter.numel() for parameter in network.parameters())
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    counted = getattr(network, "parameter_counts", None)
    active = total if counted is None else int(counted()["active"])
    return Counts(total, trainable, active)


def largest_batch(small: Footprint, large: Footprint, memory: float) -> int:
    """Return the most rows of the length of `large` that fit in `memory` bytes; 0 if not even one does.

    The memory beside weights, gradients and optimizer grows in proportion to the rows. `small` and `large` are two
    batches of the same length.
    """
    if small.rows == large.rows:
        slope, start = (large.peak - large.fixed) / large.rows, float(large.fixed)
    else:
        slope = (large.peak - small.peak) / (large.rows - small.rows)
        start = large.peak - slope * large.rows
    if slope <= 0:
        return large.rows
    return max(0, math.floor((memory - start) / slope))


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages of tensors from their allocation to their release.

    Args:
        fixed: Storages that do not count: those of weights and buffers.
        vocabulary: Size of the last axis of logits.
    """

    def __init__(self, fixed: set[int], vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = 0
        self.products: set[str] = set()
        self.current = self.peak = self.start = 0
        self._fixed = fixed
        self._vocabulary = vocabulary
        self._count = 0
        self._numbers: dict[int, int] = {}  # by address, which a later storage may have again
        self._live: dict[int, int] = {}
        self._at_peak: dict[int, int] = {}
        self._logits: set[int] = set()
        self._saved: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note the tensors that it allocates."""
        result = function(*args, **(kwargs or {}))
        self.kernels += not getattr(function, "is_view", False)
        if function in _PRODUCTS:
            self.products.add(str([tuple(each.shape) for each in args if isinstance(each, Tensor)]))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def save(self, tensor: Tensor) -> Tensor:
        """Note a tensor that the backward pass needs."""
        self._saved.add(self._numbers.get(tensor.untyped_storage()._cdata, 0))
        return tensor

    def restart(self) -> None:
        """Begin another peak."""
        self.peak = self.start = self.current

    def by_part(self, network: nn.Module) -> dict[str, int]:
        """Return the bytes at the peak: gradients, activations, logits, temporary."""
        addresses = (p.grad.untyped_storage()._cdata for p in network.parameters() if p.grad is not None)
        gradients = {self._numbers.get(address, 0) for address in addresses}
        named = (("gradients", gradients), ("logits", self._logits), ("activations", self._saved))
        parts = dict.fromkeys(("gradients", "activations", "logits", "temporary"), 0)
        for number, size in self._at_peak.items():
            parts[next((name for name, numbers in named if number in numbers), "temporary")] += size
        return parts

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._numbers or address in self._fixed:
            return
        self._count += 1
        size = storage.nbytes()
        self._numbers[address], self._live[self._count] = self._count, size
        weakref.finalize(storage, self._release, address)
        if tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary and tensor.is_floating_point():
            self._logits.add(self._count)
        self.current += size
        if self.current > self.peak:
            self.peak = self.current
            self._at_peak = dict(self._live)

    def _release(self, address: int) -> None:
        self.current -= self._live.pop(self._numbers.pop(address, 0), 0)


def _distinct(tensors: Any) -> list[Tensor]:
    return list({each.untyped_storage()._cdata: each for each in tensors}.values())


def _size(tensors: Any) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """FLOPs of a product for each group: rows (M, K) or (E, C, K), or both factors cut along the shared axis."""
    if len(a) == 3 and len(b) == 2:
        return int(2 * a[1] * a[2] * b[1])
    return int(2 * math.prod(a) * b[-1])


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}
_FORMULAS = {
    torch.ops.aten._grouped_mm: _grouped,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Products that `torch.utils.flop_counter` does not know."""
