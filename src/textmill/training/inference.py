"""Batched predictions over a table, in the table's order; needs torch, not Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from textmill.tasks.base import Outputs, Task


def length_batches(lengths: NDArray[np.int64], tokens: int, max_rows: int | None = None) -> list[NDArray[np.int64]]:
    """Cut rows, longest first, into batches whose padded size (rows times longest) is at most `tokens`.

    A row longer than `tokens` is a batch of its own.

    Args:
        lengths: Tokens of each row, shape (n,).
        tokens: Budget of a batch, padding counted.
        max_rows: Rows that a batch has at most.

    Returns:
        Row numbers of each batch; together every row once. Rows of equal length keep their order.
    """
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, tokens // max(1, int(lengths[order[start]])))
        if max_rows is not None:
            rows = min(rows, max_rows)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def stack_rows(chunks: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Chunks of shape (rows, ...) one below the other; shorter inner axes are filled with NaN."""
    parts = list(chunks)
    inner = tuple(max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
    if all(part.shape[1:] == inner for part in parts):
        return np.concatenate(parts)
    stacked = np.full((sum(len(part) for part in parts), *inner), np.nan, dtype=np.float32)
    start = 0
    for part in parts:
        stacked[(slice(start, start + len(part)), *(slice(0, size) for size in part.shape[1:]))] = part
        start += len(part)
    return stacked


def predict_table(
    network: nn.Module, task: Task, table: pa.Table, *, tokens_per_batch: int = 4096, autocast: bool = False
) -> Outputs:
    """The network's outputs for every example of a prepared split (see `Task.examples`).

    Args:
        network: In evaluation mode; stays on its device.
        task: Collates, and names the outputs: those of its `loss`, or, for a table without the
            encoded target, those of the network itself.
        table: With `length` and the columns of `task.encode`.
        tokens_per_batch: Padded size of a batch.
        autocast: Compute in bfloat16 where PyTorch holds it safe; float32 otherwise.

    Returns:
        By name, float32 arrays with one row for each example, in their order.
    """
    import torch

    examples = task.examples(table)
    device = next(network.parameters()).device
    batches = length_batches(examples.lengths, tokens_per_batch)
    chunks: dict[str, list[NDArray[np.float32]]] = {}
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for rows in batches:
            batch = task.collate(examples.__getitems__(rows.tolist()))
            moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            for name, values in _outputs(network, task, moved).items():
                chunks.setdefault(name, []).append(values.float().cpu().numpy())
    return restore_order(chunks, batches)


def restore_order(chunks: Mapping[str, Sequence[NDArray[np.float32]]], batches: Sequence[NDArray[np.int64]]) -> Outputs:
    """Stack the outputs of `batches` and put them into the order of their row numbers 0..n-1."""
    back = np.argsort(np.concatenate(batches), kind="stable") if batches else np.empty(0, dtype=np.int64)
    return {name: stack_rows(parts)[back] for name, parts in chunks.items()}


def _outputs(network: nn.Module, task: Task, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the task's loss gives for each row; without targets, what the network gives."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    if set(batch) == set(inputs):
        named: dict[str, torch.Tensor] = network(**batch)
        return named
    return {name: values for name, values in task.loss(network, batch).items() if values.ndim}
