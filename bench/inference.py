"""Sentences per second of the exported int8 model against eager fp32 PyTorch; prints Markdown.

Usage: `python -m bench.inference [EXPORTED_FOLDER]`, by default `data/exported/model`. The sentences
are those of `data/prepared/test` beside it. Both sides use the same threads and get the same batches
of token ids, built before the clock starts; with `Predictor` the batching counts too. The sides take
turns in every repetition, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from textmill.text.batches import length_batches, pad

ROOT = Path(__file__).resolve().parent.parent
THREADS = min(2, len(os.sched_getaffinity(0)))
REPETITIONS = 5
TOKENS = 2048
ROWS = 32

Batch = dict[str, Any]


def padded(ids: Sequence[Sequence[int]], rows: Sequence[int]) -> Batch:
    """`input_ids` and `attention_mask` of some rows."""
    values, mask = pad([ids[row] for row in rows])
    return {"input_ids": values, "attention_mask": mask}


def medians(sides: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each side, after one warm-up, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(REPETITIONS + 1):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if repetition:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(folder: Path) -> None:
    """Measure and print the table."""
    import torch

    from textmill.data.prepared import Prepared
    from textmill.models.base import Model
    from textmill.predicting.exported import read_specification
    from textmill.predicting.loading import load_predictor
    from textmill.tasks.base import Task
    from textmill.training.loading import load_network

    torch.set_num_threads(THREADS)
    data = folder.resolve().parent.parent
    exported = read_specification(folder)
    prepared = Prepared(data / "prepared")
    ids = prepared.split("test").column("input_ids").to_pylist()
    task, model = Task.build(exported.task), Model.build(exported.model)
    network = load_network(task, model, exported.state, data / "trained").eval()
    int8, fp32 = (load_predictor(folder, precision, threads=THREADS) for precision in ("int8", "fp32"))

    lengths = np.array([len(row) for row in ids])
    orders: dict[str, Sequence[Any]] = {
        f"by length, {TOKENS} tokens per batch": length_batches(lengths, TOKENS),
        f"as given, {ROWS} rows per batch": [
            list(range(i, min(i + ROWS, len(ids)))) for i in range(0, len(ids), 4 * ROWS)
        ],
        "one by one": [[row] for row in range(0, len(ids), 8)],
    }
    print(f"{len(ids)} test sentences, {lengths.mean():.0f} tokens on average, {THREADS} threads,")
    print(f"median of {REPETITIONS} repetitions in turn. Sentences per second; in brackets the gain over PyTorch.\n")
    print("| batches | PyTorch fp32, eager | ONNX fp32 | ONNX int8 | int8 by `Predictor` |")
    print("|---|---:|---:|---:|---:|")
    for name, order in orders.items():
        batches = [padded(ids, rows) for rows in order]
        chosen = [ids[row] for rows in order for row in rows]

        def eager(batches: list[Batch] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    network(**{key: torch.from_numpy(value) for key, value in batch.items()})

        def graph(session: Any, batches: list[Batch] = batches) -> None:
            for batch in batches:
                session.run(None, batch)

        sides: dict[str, Callable[[], Any]] = {
            "eager": eager,
            "fp32": partial(graph, fp32.session),
            "int8": partial(graph, int8.session),
        }
        if name.startswith("by length"):
            sides["predictor"] = partial(int8.outputs_of_ids, chosen)
        taken = medians(sides)
        cells = [f"{len(chosen) / taken['eager']:.0f}"]
        for side in ("fp32", "int8", "predictor"):
            gain = f"{len(chosen) / taken[side]:.0f} ({taken['eager'] / taken[side]:.1f}x)" if side in taken else ""
            cells.append(f"**{gain}**" if side == "int8" else gain)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\nGoal: int8 at least 2.5 times eager PyTorch.")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "data/exported/model")
