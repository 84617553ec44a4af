"""Documents packed into rows: joined and cut, and by best fit; and attention within documents; prints Markdown.

The lengths are drawn like those of pages of the web, with a median of 400 tokens. Attention, forward and backward, is
that of one layer with 8 heads of width 64 in float32: by a mask of all pairs of tokens, and document by document.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

DOCUMENTS = (10_000, 100_000, 1_000_000)
ROW = 2048
LENGTHS = (1024, 2048, 4096)
ROUNDS = 3


def split(documents: int) -> Any:
    """A split of documents without text: only their lengths count."""
    import pyarrow as pa

    lengths = np.random.default_rng(0).lognormal(6.0, 1.2, documents).astype(np.int64).clip(8, 50_000)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    ids = pa.LargeListArray.from_arrays(offsets, pa.array(np.zeros(lengths.sum(), np.int32)))
    return pa.table({"input_ids": ids, "length": pa.array(lengths)})


def peak_of(step: Callable[[], object]) -> int:
    """Most bytes of tensors that a step holds at a time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def attention(length: int) -> dict[str, Callable[[], object]]:
    """Steps of attention over one row of documents whose lengths are drawn as above."""
    import torch

    from textmill.models.attention import additive_mask, scaled_dot_product_attention_fused
    from textmill.models.documents import attend_within, group_documents

    draw = np.random.default_rng(0).lognormal(6.0, 1.2, length).astype(np.int64).clip(8, length)
    documents = torch.from_numpy(np.repeat(np.arange(length), draw)[:length])[None]
    query, key, value = (torch.randn(1, 8, length, 64, requires_grad=True) for _ in range(3))
    index = torch.arange(length)

    def by_mask() -> object:
        mask = additive_mask(index, index, document_ids=documents)
        return torch.autograd.grad(
            scaled_dot_product_attention_fused(query, key, value, mask).sum(), [query, key, value]
        )

    def by_documents() -> object:
        found = attend_within(query, key, value, group_documents(documents))
        return torch.autograd.grad(found.sum(), [query, key, value])

    return {"mask": by_mask, "documents": by_documents}


def main() -> None:
    """Measure and print the tables."""
    from textmill.tasks.examples.packing import packing_counts

    print(f"Rows of {ROW:,} tokens. The seconds are those of both ways together.\n")
    print("| documents | cut: joined | cut: best fit | filled: joined | filled: best fit | seconds |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in DOCUMENTS:
        table = split(count)
        started = time.perf_counter()
        found = packing_counts(table, ROW)
        seconds = time.perf_counter() - started
        joined, best = found["concatenate"], found["best_fit"]
        print(
            f"| {count:,} | {joined['cut'] / count:.1%} | {best['cut'] / count:.1%} | {joined['filled']:.2%} "
            f"| {best['filled']:.2%} | {seconds:.2f} |",
            flush=True,
        )
    print(f"\nAttention of one row; median of {ROUNDS}.\n")
    print("| tokens | mask: ms | documents: ms | mask: MB | documents: MB |\n|---:|---:|---:|---:|---:|")
    for length in LENGTHS:
        steps = attention(length)
        taken: dict[str, list[float]] = {name: [] for name in steps}
        peaks = {name: peak_of(step) for name, step in steps.items()}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                taken[name].append(time.perf_counter() - started)
        cells = [f"{1000 * statistics.median(taken[name]):.0f}" for name in steps]
        cells += [f"{peaks[name] / 1e6:.1f}" for name in steps]
        print(f"| {length:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
