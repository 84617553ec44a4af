"""Compare the exported graphs with the trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from textmill.errors import UserError
from textmill.evaluation.evaluator import evaluator_of

if TYPE_CHECKING:
    import pandas as pd

    from textmill.metrics.base import Outputs
    from textmill.tasks.base import State, Task


@dataclass(frozen=True)
class Parity:
    """Differences between graphs and PyTorch on the test split.

    Attributes:
        metric: Name of the task's main metric.
        onnx_max_difference: Largest absolute difference between fp32 ONNX and PyTorch outputs.
        fp32: Main metric of the PyTorch outputs.
        int8: Main metric of the int8 graph.
        int8_loss: Loss of int8 in the metric's unit; negative if int8 is better.
        int8_changed: Share of rows with a different int8 answer.
    """

    metric: str
    onnx_max_difference: float
    fp32: float
    int8: float
    int8_loss: float
    int8_changed: float


def measure_parity(
    task: Task, state: State, frame: pd.DataFrame, torch: Outputs, fp32: Outputs, int8: Outputs
) -> Parity:
    """Compare the outputs of both graphs with those of PyTorch for the same rows with targets."""
    evaluator = evaluator_of(task)
    metric = evaluator.main_metric(state)
    every_row = np.arange(len(frame))[None]

    def score(outputs: Outputs) -> float:
        table = evaluator.predictions(outputs, frame, state)
        columns = {str(name): table[name].to_numpy() for name in table}
        return float(metric.score(columns, every_row)[0])

    exact, rounded = score(torch), score(int8)
    rows = {str(name): frame[name].tolist() for name in frame}
    answers = [task.answers(outputs, rows, rows, state) for outputs in (torch, int8)]
    changed = [_gist(one) != _gist(other) for one, other in zip(*answers, strict=True)]
    return Parity(
        metric=metric.name,
        onnx_max_difference=max_difference(torch, fp32),
        fp32=exact,
        int8=rounded,
        int8_loss=exact - rounded if metric.higher_is_better else rounded - exact,
        int8_changed=float(np.mean(changed)),
    )


def max_difference(expected: Outputs, actual: Outputs) -> float:
    """Return the largest absolute difference between two sets of outputs; NaN if only one has a NaN.

    Raises:
        UserError: Their names or shapes differ.
    """
    shapes = [{name: values.shape for name, values in outputs.items()} for outputs in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"the evaluation's outputs {shapes[0]} differ from the graph's outputs {shapes[1]}",
            where="data/evaluation/outputs.npz",
            fix="Run `dvc repro --force evaluate`",
        )
    differences = [0.0]
    for name, values in expected.items():
        padding = np.isnan(values) & np.isnan(actual[name])
        differences.append(float(np.abs(np.where(padding, 0, values - actual[name])).max(initial=0)))
    return float(np.max(differences))


def require_parity(parity: Parity, onnx_tolerance: float, int8_tolerance: float) -> None:
    """Check the differences against their tolerances.

    Raises:
        UserError: A difference exceeds its tolerance or is NaN.
    """
    if not parity.onnx_max_difference <= onnx_tolerance:
        raise UserError(
            f"fp32 ONNX outputs differ from PyTorch by {parity.onnx_max_difference:.3g}, more than {onnx_tolerance:g}",
            where="export.onnx_tolerance",
            fix="Find the operator that differs before you raise the tolerance",
        )
    if not parity.int8_loss <= int8_tolerance:
        raise UserError(
            f"int8 loses {parity.int8_loss:.4f} {parity.metric} ({parity.fp32:.4f} -> {parity.int8:.4f}), "
            f"more than {int8_tolerance:g}",
            where="export.int8_tolerance",
            fix="Raise the tolerance, or train a model that is more robust to quantisation",
        )


def file_sizes(folder: Path, files: dict[str, str]) -> dict[str, float]:
    """Return the size of each file in MB (10^6 bytes) as `NAME_megabytes`."""
    return {f"{name}_megabytes": (folder / file).stat().st_size / 1e6 for name, file in files.items()}


def _gist(answer: dict[str, object]) -> dict[str, object]:
    """Return the text fields of an answer, without its numbers."""
    return {name: value for name, value in answer.items() if isinstance(value, str)}
