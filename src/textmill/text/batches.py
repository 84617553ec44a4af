"""Cut sequences into batches, pad them, and restore their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


def length_batches(lengths: NDArray[np.int64], tokens: int, max_rows: int | None = None) -> list[NDArray[np.int64]]:
    """Cut rows of `lengths` (n,), longest first, into batches of at most `tokens` tokens, padding included.

    A row longer than `tokens` is a batch of its own. The result is the row numbers of each batch;
    rows of equal length keep their order.
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
    """Concatenate chunks of shape (rows, ...); shorter inner axes are padded with NaN."""
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


def restore_order(
    chunks: Mapping[str, Sequence[NDArray[np.float32]]], batches: Sequence[NDArray[np.int64]]
) -> dict[str, NDArray[Any]]:
    """Stack the outputs of `batches` in the order of the row numbers 0..n-1."""
    back = np.argsort(np.concatenate(batches), kind="stable") if batches else np.empty(0, dtype=np.int64)
    return {name: stack_rows(parts)[back] for name, parts in chunks.items()}


def pad(sequences: Sequence[Sequence[int]], width: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids, padded with 0 (masked), and their mask; shape (B, T), T the longest, at least `width`."""
    lengths = np.fromiter((len(ids) for ids in sequences), np.int64, len(sequences))
    mask = np.arange(max(width, lengths.max(initial=0))) < lengths[:, None]
    padded = np.zeros(mask.shape, np.int64)
    if len(sequences):
        padded[mask] = np.concatenate([np.asarray(ids, np.int64) for ids in sequences])
    return padded, mask.astype(np.int64)


def pad_tensors(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the arrays of `pad` as tensors."""
    import torch

    padded, mask = pad(sequences)
    return torch.from_numpy(padded), torch.from_numpy(mask)


def padded_batch(rows: Mapping[str, Sequence[Any]], targets: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Return `input_ids` and `attention_mask` (B, T), and those columns of `targets` that `rows` has, (B, ...).

    `targets` are NumPy's type names by column.
    """
    import torch

    input_ids, mask = pad_tensors(rows["input_ids"])
    there = {name: torch.from_numpy(np.asarray(rows[name], kind)) for name, kind in targets.items() if name in rows}
    return {"input_ids": input_ids, "attention_mask": mask, **there}
