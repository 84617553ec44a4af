"""Serving costs of models, measured together: latency for one row, memory, size.

As a program (`python -m textmill.registry.promotion.costs FOLDER PRECISION`, inputs as JSON on stdin) it
loads one model, predicts, and prints its resident memory in MB: a process holds no other models.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from textmill.config.plugins import trusting_environment
from textmill.config.sections.gate import GateConfig
from textmill.errors import UserError
from textmill.evaluation.gate import Costs

if TYPE_CHECKING:
    from textmill.predicting.loading import Precision
    from textmill.predicting.predictor import Predictor

Predict = Callable[[Sequence[Any]], list[dict[str, Any]]]
"""Answers natural inputs: one record for each."""

_WARM_UP = 5
_MUCH_FASTER = 0.25  # share of the time of an input
_STABLE = 0.01  # share of the inputs
_MAX_TURN_FACTOR = 5
_MEMORY_SECONDS = 300
_MEGABYTE = 1e6


def measure_costs(
    predictors: Sequence[Predictor], folders: Sequence[Path], rows: Sequence[dict[str, Any]], gate: GateConfig
) -> list[Costs]:
    """Return the costs of each model, in order, on a sample of `rows`."""
    order = np.random.default_rng(gate.seed).permutation(len(rows))
    inputs = [rows[position] for position in order[: gate.budgets.rows]]
    return [
        Costs(
            latency,
            memory(folder, gate.precision, inputs),
            size(folder, predictor, gate.precision),
            predictor.exported.resolved(gate.precision),
        )
        for latency, folder, predictor in zip(
            latencies([predictor.predict for predictor in predictors], inputs, gate.budgets.repeats),
            folders,
            predictors,
            strict=True,
        )
    ]


def latencies(models: Sequence[Predict], inputs: Sequence[dict[str, Any]], repeats: int) -> list[float]:
    """Return the 95th percentile of the latency of single inputs, in ms, for each model.

    The models take turns, so that other load on the machine affects all of them. The fastest repeat of
    an input counts. Extra turns follow, up to five times `repeats`, while a turn makes more than 1 % of the inputs
    faster by a quarter: otherwise disturbed inputs could determine the percentile.
    """
    best = np.full((len(models), len(inputs)), np.inf)
    for predict in models:
        for row in inputs[:_WARM_UP]:
            predict([row])
    for turn in range(1, _MAX_TURN_FACTOR * repeats + 1):
        before = best.copy()
        for position, row in enumerate(inputs):
            for number, predict in enumerate(models):
                started = time.perf_counter()
                predict([row])
                best[number, position] = min(best[number, position], time.perf_counter() - started)
        faster = best < (1 - _MUCH_FASTER) * before
        if turn >= repeats and (faster.mean(axis=1) <= _STABLE).all():
            break
    return [float(value) for value in 1000 * np.quantile(best, 0.95, axis=1)]


def memory(folder: Path, precision: str, inputs: Sequence[dict[str, Any]]) -> float:
    """Return the resident memory in MB of a process that loads one model and predicts, or raise UserError."""
    command = [sys.executable, "-m", "textmill.registry.promotion.costs", str(folder), precision]
    done = subprocess.run(
        command,
        input=json.dumps(list(inputs)),
        capture_output=True,
        text=True,
        timeout=_MEMORY_SECONDS,
        env=trusting_environment(),
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"memory cannot be measured: {last[:300]}", where=str(folder))
    return float(done.stdout)


def size(folder: Path, predictor: Predictor, precision: str) -> float:
    """Return the size in MB of the graph with its weights; of the weights alone where PyTorch predicts."""
    exported = predictor.exported
    return (folder / exported.graphs.get(exported.resolved(precision), "model.safetensors")).stat().st_size / _MEGABYTE


def _print_memory(folder: Path, precision: Precision) -> None:
    import psutil

    from textmill.predicting.loading import load_predictor

    load_predictor(folder, precision).predict(json.load(sys.stdin))
    sys.stdout.write(f"{psutil.Process().memory_info().rss / _MEGABYTE}\n")


if __name__ == "__main__":
    _print_memory(Path(sys.argv[1]), cast("Precision", sys.argv[2]))
