"""Steps of SmolLM2-135M on pairs of answers, and of instruction tuning on the same conversations; prints Markdown.

Both sides have the same weights, low-rank updates or none, and tokens. The reference's log-likelihoods are given, as
`prepare` stores them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.packing import load

PAIRS = 3
PROMPT, ANSWER = 160, 24
ROUNDS = 3
GOAL = 1.1
METHODS = ("dpo", "ipo", "orpo", "simpo", "kto")


def rows_of(draw: Any) -> dict[str, list[Any]]:
    """Encoded pairs of random tokens, with a third answer to each prompt."""
    import torch

    def tokens(number: int) -> list[int]:
        return list(torch.randint(17, 49_152, (number,), generator=draw).tolist())

    rows: dict[str, list[Any]] = {}
    prompts = [tokens(PROMPT) for _ in range(PAIRS)]
    for ids, side in (("input_ids", ""), ("rejected_ids", "rejected_"), ("unrelated_ids", "unrelated_")):
        rows[ids] = [prompt + tokens(ANSWER) for prompt in prompts]
        rows[f"{side}answer"] = [[0] * PROMPT + [1] * ANSWER for _ in prompts]
        rows[f"{side}reference"] = [[-9.0] * ANSWER for _ in prompts]
    return rows


def seconds_of(task: Any, model: Any, batch: Any) -> float:
    """Forward and backward pass; return its seconds of all cores, which other programs change less than wall time."""
    started = time.process_time()
    task.loss(model, batch).loss.backward()
    seconds = time.process_time() - started
    model.zero_grad()
    return seconds


def main() -> None:
    """Measure and print the table."""
    import torch

    from textmill.tasks.instruction_tuning import InstructionTuning
    from textmill.tasks.preference_tuning import PreferenceTuning

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, DPO and KTO only")
    quick = parser.parse_args().quick
    rows = rows_of(torch.Generator().manual_seed(0))
    pairs = {name: values for name, values in rows.items() if not name.startswith("unrelated")}
    single = InstructionTuning.from_options()
    both = {name: rows[name] + rows[f"rejected_{name.removeprefix('input_')}"] for name in ("input_ids", "answer")}
    sides: dict[str, tuple[Any, Any]] = {"instruction tuning": (single, single.collate(both))}
    for method in ("dpo", "kto") if quick else METHODS:
        task = PreferenceTuning.from_options(method=method)
        sides[method] = (task, task.collate(rows if method == "kto" else pairs))
    with tempfile.TemporaryDirectory() as name:
        model = load(Path(name))
    found: dict[tuple[str, bool], list[float]] = {}
    for trains_all in (False, True):
        if trains_all:
            model.requires_grad_(True)
        for number in range(2 if quick else ROUNDS + 1):
            for side, (task, batch) in sides.items():
                seconds = seconds_of(task, model, batch)
                if number:  # the first pass also plans
                    found.setdefault((side, trains_all), []).append(seconds)
    medians = {key: statistics.median(values) for key, values in found.items()}
    print(f"SmolLM2-135M in float32: forward and backward pass over {2 * PAIRS} conversations of {PROMPT + ANSWER}")
    print(f"tokens, {ANSWER} of them the answer's; median of {len(next(iter(found.values())))}, sides in turn.")
    print(f"Goal: at most {GOAL} times instruction tuning.")
    print("KTO also reads an unrelated answer to each prompt, without gradients.\n")
    print(
        "| loss | low-rank updates, CPU seconds | times | all weights, CPU seconds | times |\n|---|---:|---:|---:|---:|"
    )
    for side in sides:
        cells = [
            (medians[side, which], medians[side, which] / medians["instruction tuning", which])
            for which in (False, True)
        ]
        print(f"| {side} | " + " | ".join(f"{seconds:.2f} | {times:.2f}" for seconds, times in cells) + " |")


if __name__ == "__main__":
    main()
