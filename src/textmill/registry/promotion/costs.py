"""What versions cost, measured side by side: time for one row, memory, size.

As a program (`python -m textmill.registry.promotion.costs FOLDER PRECISION`, inputs as JSON on stdin) it
loads a model, answers, and prints its resident memory in MB; so other models weigh nothing there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from textmill.config.sections.gate import GateConfig
from textmill.errors import UserError
from textmill.evaluation.gate import Costs

if TYPE_CHECKING:
    from textmill.predicting.loading import Precision
    from textmill.predicting.predictor import Predictor

_WARM_UP = 5
_MUCH_FASTER = 0.25
_SETTLED = 0.01
_MOST_TURNS = 5
_MEMORY_SECONDS = 300
_MEGABYTE = 1e6


def costs_of(
    predictors: Sequence[Predictor], folders: Sequence[Path], rows: Sequence[dict[str, Any]], gate: GateConfig
) -> list[Costs]:
    """The costs of each model, in their order.

    Args:
        predictors: Loaded models.
        folders: Their exported folders.
        rows: Inputs, from which as many are drawn as the configuration says.
        gate: Names the graph, the number of rows and the seed.
    """
    chooser = np.random.default_rng(gate.seed)
    drawn = chooser.permutation(len(rows))[: gate.budgets.rows]
    inputs = [rows[position] for position in drawn]
    return [
        Costs(latency, memory(folder, gate.precision, inputs), size(folder, predictor, gate.precision))
        for latency, folder, predictor in zip(
            latencies(predictors, inputs, gate.budgets.repeats), folders, predictors, strict=True
        )
    ]


class Answering(Protocol):
    """Whatever answers natural inputs."""

    def predict(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        """One record an input."""


def latencies(predictors: Sequence[Answering], inputs: Sequence[dict[str, Any]], repeats: int) -> list[float]:
    """95th percentile over the inputs of the time to answer one alone, in ms, for each model.

    The models take turns, so that what disturbs the machine disturbs all, and of an input's repeats the
    fastest counts. Still so many inputs may be disturbed in each repeat that they make the percentile, so
    there are further turns for as long as one makes more than 1 % of the inputs faster by a quarter,
    up to five times as many as asked.

    Args:
        predictors: Loaded models.
        inputs: What each of them is asked.
        repeats: How often at least.
    """
    best = np.full((len(predictors), len(inputs)), np.inf)
    for predictor in predictors:
        for row in inputs[:_WARM_UP]:
            predictor.predict([row])
    for turn in range(1, _MOST_TURNS * repeats + 1):
        before = best.copy()
        for position, row in enumerate(inputs):
            for number, predictor in enumerate(predictors):
                started = time.perf_counter()
                predictor.predict([row])
                best[number, position] = min(best[number, position], time.perf_counter() - started)
        faster = best < (1 - _MUCH_FASTER) * before
        if turn >= repeats and (faster.mean(axis=1) <= _SETTLED).all():
            break
    return [float(value) for value in 1000 * np.quantile(best, 0.95, axis=1)]


def memory(folder: Path, precision: str, inputs: Sequence[dict[str, Any]]) -> float:
    """Resident memory of a process of its own after it has answered, in MB.

    Raises:
        UserError: The process failed.
    """
    command = [sys.executable, "-m", "textmill.registry.promotion.costs", str(folder), precision]
    done = subprocess.run(
        command, input=json.dumps(list(inputs)), capture_output=True, text=True, timeout=_MEMORY_SECONDS
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"its memory cannot be measured: {last[:300]}", where=str(folder))
    return float(done.stdout)


def size(folder: Path, predictor: Predictor, precision: str) -> float:
    """The graph that answers, with its weights, in MB; the weights alone where PyTorch answers."""
    return (folder / predictor.exported.graphs.get(precision, "model.safetensors")).stat().st_size / _MEGABYTE


def _print_memory(folder: Path, precision: Precision) -> None:
    import psutil

    from textmill.predicting.loading import load_predictor

    load_predictor(folder, precision).predict(json.load(sys.stdin))
    sys.stdout.write(f"{psutil.Process().memory_info().rss / _MEGABYTE}\n")


if __name__ == "__main__":
    _print_memory(Path(sys.argv[1]), cast("Precision", sys.argv[2]))
