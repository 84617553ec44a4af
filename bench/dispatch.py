"""A mixture of experts against the dense model of equal active FLOPs, on the CPU; prints Markdown.

Every token passes as many feed-forward weights in the mixture as in the dense model, so the time
that the mixture takes longer is what routing, sorting, smaller matrix products and the idle
experts' share of casts and updates cost. The models take turns in every repetition.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

THREADS = min(2, len(os.sched_getaffinity(0)))
VOCABULARY = 65
CONTEXT = 64
ROUTERS = {
    "`top_k`, 2 of 8": "top_k.TopK",
    "`switch`, 1 of 8": "switch.Switch",
    "`sigmoid_bias`, 2 of 8": "sigmoid_bias.SigmoidBias",
    "`expert_choice`, 2 of 8": "expert_choice.ExpertChoice",
    "`hash`, 1 of 8": "hash.Hash",
    "`sinkhorn`, 1 of 8": "sinkhorn.Sinkhorn",
    "`base`, 1 of 8": "base_layer.Base",
}


def training_step(router: str | None, rows: int, low_precision: bool) -> Callable[[], None]:
    """A step of forward, backward and AdamW on random tokens."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    from textmill.models.architecture import Architecture
    from textmill.models.language_model import LanguageModel

    options: dict[str, Any] = {"max_length": CONTEXT}
    if router is not None:
        options |= {"feed_forward": "experts", "router": {"_target_": f"textmill.models.routing.{router}"}}
    torch.manual_seed(0)
    model = LanguageModel(Architecture(**options), VOCABULARY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(VOCABULARY, (rows, CONTEXT + 1))

    def step() -> None:
        precision = torch.autocast("cpu", dtype=torch.bfloat16) if low_precision else contextlib.nullcontext()
        with precision:
            hidden = model.hidden_states(tokens[:, :-1])
            logits = F.linear(hidden.states, model.output_weight)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        for term in model.auxiliary_losses(hidden.routing).values():
            loss = loss + term
        loss.backward()  # type: ignore[no-untyped-call]
        model.update_routers(hidden.routing)
        optimizer.step()
        optimizer.zero_grad()

    return step


def medians(sides: dict[str, Callable[[], None]], repetitions: int) -> dict[str, float]:
    """Median seconds of each side, after three warm-up steps, taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + 3):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if repetition >= 3:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(repetitions: int) -> None:
    """Measure and print the table."""
    import torch

    from textmill.training.allocation import keep_freed_memory

    torch.set_num_threads(THREADS)
    keep_freed_memory()  # as every training does
    print(f"4 layers of width 128, {CONTEXT} tokens of context, 0.81 million active weights (4.6 or 2.4 million in")
    print(f"total with 8 experts). Forward, backward and AdamW; {THREADS} threads, median of {repetitions} steps.")
    print(
        "Milliseconds per step; in brackets as a multiple of the dense model's. Goal: at most 1.5x. The additional time"
    )
    print("at small batches does not depend on the number of tokens: casts, gradients and AdamW over all experts'")
    print("weights, and the start of many small products.\n")
    settings = [(rows, low) for rows in (12, 64) for low in (False, True)]
    cells: dict[str, list[str]] = {name: [] for name in ("dense", *ROUTERS)}
    for rows, low in settings:
        sides = {"dense": training_step(None, rows, low)}
        sides |= {name: training_step(router, rows, low) for name, router in ROUTERS.items()}
        taken = medians(sides, repetitions)
        for name, seconds in taken.items():
            multiple = "" if name == "dense" else f" ({seconds / taken['dense']:.2f}x)"
            cells[name].append(f"{seconds * 1000:.1f}{multiple}")
    heads = [f"{rows} rows, {'bf16' if low else 'fp32'}" for rows, low in settings]
    print(f"| feed-forward | {' | '.join(heads)} |")
    print(f"|---|{'---:|' * len(heads)}")
    for name, values in cells.items():
        print(f"| {name} | {' | '.join(values)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    main(5 if parser.parse_args().quick else 30)
