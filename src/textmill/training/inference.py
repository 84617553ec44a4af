"""Batched predictions over a table, in the table's order; needs torch, not Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textmill.tasks.abilities import examples_of
from textmill.text.batches import length_batches, restore_order

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from textmill.metrics.base import Outputs
    from textmill.tasks.base import Task


def predict_table(
    network: nn.Module, task: Task, table: pa.Table, *, tokens_per_batch: int = 4096, autocast: bool = False
) -> Outputs:
    """The network's outputs for every example of a prepared split (see `examples_of`).

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

    examples = examples_of(task, table)
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


def _outputs(network: nn.Module, task: Task, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the task's loss gives for each row; without targets, what the network gives."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    if set(batch) == set(inputs):
        named: dict[str, torch.Tensor] = network(**batch)
        return named
    return dict(task.loss(network, batch).outputs)
