"""Batched predictions of a table in its order; imports torch but not Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textmill.errors import UserError
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
    """Return the outputs for every example of a prepared split (see `examples_of`), in order.

    Args:
        network: Network in evaluation mode; stays on its device.
        task: Task that collates. The outputs are those of its `loss`, or, for a table without the encoded
            target, those of the network itself.
        table: Table with `length` and the columns of `task.encode`.
        tokens_per_batch: Largest number of positions of a batch, with padding.
        autocast: Whether to compute in bfloat16 where PyTorch considers it safe; else in float32.

    Returns:
        Float32 arrays by name, one row an example.

    Raises:
        UserError: The loss of a batch is not finite: its outputs must not score.
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
    """Return the outputs of the task's loss; without targets, those of the network."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    if set(batch) == set(inputs):
        named: dict[str, torch.Tensor] = network(**batch)
        return named
    step = task.loss(network, batch)
    if not bool(step.loss.isfinite()):
        raise UserError(
            "the trained network computes values that are not finite",
            where="data/trained",
            fix="Lower train.optimizer.learning_rate or set trainer.precision to 32-true, then train again",
        )
    return dict(step.outputs)
