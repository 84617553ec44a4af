"""Memory that does not suffice: batches are computed in parts, with the gradient of the whole."""

from __future__ import annotations

import ctypes
import gc
import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor

from textmill.errors import UserError
from textmill.training.accumulation import Accumulation, MicroBatch

log = logging.getLogger("textmill")

_SIGNS = ("can't allocate memory", "std::bad_alloc", "could not create a memory object", "could not create a primitive")


class OutOfMemoryError(UserError):
    """A training that does not fit in memory."""


def available_memory() -> int:
    """Return the bytes that this process may use: of the GPU, or resident within the limits of machine and process."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    used = psutil.Process().memory_info()
    limits = [psutil.virtual_memory().available + used.rss]
    with suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - (used.vms - used.rss))
    return max(0, min(limits))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on the CPU or a GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


class BatchSplitter:
    """Computes a step's micro-batches in parts where they do not fit in memory.

    Args:
        accumulation: Computes the losses.
        count_targets: See `Task.target_count`.
        autocast: Returns the context of a forward pass.
        can_split: Whether the step may be split: on one rank, by routers that do not assign whole batches.

    Attributes:
        parts: Parts of each batch; 1 until memory was short.
    """

    def __init__(
        self,
        accumulation: Accumulation,
        count_targets: Callable[[Mapping[str, Tensor]], int],
        autocast: Callable[[], AbstractContextManager[None]],
        *,
        can_split: bool,
    ) -> None:
        self.parts = 1
        self._accumulation = accumulation
        self._count_targets = count_targets
        self._autocast = autocast
        self._can_split = can_split
        self._micros: list[MicroBatch] = []

    def begin(self, micro: MicroBatch) -> None:
        """Remember a micro-batch of the step."""
        if micro.number == 0:
            self._micros = []
        self._micros.append(micro)

    def run(self, size: int) -> None:
        """Compute the gradients of the last micro-batch in parts; see `Accumulation.scaled_loss` for `size`."""
        self._run(len(self._micros) - 1, size)

    def recover(self, size: int, step: int, clear: Callable[[], None]) -> None:
        """Compute the gradients of the step so far in ever smaller parts, until they fit.

        Args:
            size: See `Accumulation.scaled_loss`.
            step: Number of the step, for messages.
            clear: Removes the gradients of the failed attempt.

        Raises:
            OutOfMemoryError: Not even one row fits, or the step must not be split.
        """
        batches = self._batches()
        rows = max(len(batch["input_ids"]) for batch in batches)
        positions = max(batch["input_ids"].numel() for batch in batches)
        while self.parts < rows:
            self.parts *= 2
            clear()
            gc.collect()
            _return_freed_memory()
            if self._attempt(size):
                clear_to = max(1, positions // self.parts)
                if not self._can_split:
                    clear()
                    raise _refusal(
                        step, f"a batch of {positions} positions does not fit; one of {clear_to} does", clear_to
                    )
                log.warning(
                    "step %d: out of memory with a batch of %d positions; computes it in %d parts from now on. "
                    "The steps stay the same; train.batches.tokens of %d with train.batches.accumulate of %d is faster",
                    *(step, positions, self.parts, clear_to, size * self.parts),
                )
                return
        raise _refusal(step, f"not even one row of {positions // rows} positions fits", None)

    def _attempt(self, size: int) -> bool:
        try:
            for number in range(len(self._micros)):
                self._run(number, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _batches(self) -> Sequence[Mapping[str, Tensor]]:
        return [batch for batch, _ in self._micros[0].window] or (self._micros[0].batch,)

    def _run(self, number: int, size: int) -> None:
        batches = self._batches()
        cut = [list(_parts(batch, self.parts)) for batch in batches]
        window = tuple((part, self._count_targets(part)) for parts in cut for part in parts)
        total = self._micros[0].total
        first = sum(map(len, cut[:number]))
        for position, part in enumerate(cut[number], start=first):
            whole = window if position == 0 and len(window) > 1 else ()
            micro = MicroBatch(part, position, self._count_targets(part), total, whole)
            with self._autocast():
                loss = self._accumulation.scaled_loss(micro, size) / size
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward()  # type: ignore[no-untyped-call]


def _return_freed_memory() -> None:
    """Give what the allocators keep for later back to the system, where oneDNN asks for the code of its kernels."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _parts(batch: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return the rows of a batch in at most `count` parts."""
    rows = len(batch["input_ids"])
    split = {name: each.tensor_split(min(count, rows)) for name, each in batch.items()}
    return [{name: pieces[number] for name, pieces in split.items()} for number in range(min(count, rows))]


def _refusal(step: int, what: str, positions: int | None) -> OutOfMemoryError:
    fix = "Lower prepare.max_length, choose a smaller model, or set train.activation_checkpointing"
    if positions is not None:
        fix = f"Set it to {positions}; train.batches.accumulate keeps the size of a step where the router allows it"
    return OutOfMemoryError(f"out of memory at step {step}: {what}", where="train.batches.tokens", fix=fix)
