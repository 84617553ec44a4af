"""Compare the exported graphs with the trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from textmill.errors import UserError
from textmill.evaluation.evaluator import evaluator_of
from textmill.metrics.bootstrap import Bootstrap, Interval, paired_differences

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
        int8_loss: Loss of int8 in the metric's unit, with the bounds of its 95 % interval on paired
            resamples; negative if int8 is better.
        int8_changed: Share of rows with a different int8 answer.
    """

    metric: str
    onnx_max_difference: float
    fp32: float
    int8: float
    int8_loss: Interval
    int8_changed: float

    def serves_int8(self, tolerance: float) -> bool:
        """Return whether the rows show that int8 loses at most `tolerance`: the whole interval does."""
        return self.int8_loss.high <= tolerance

    def numbers(self) -> dict[str, float]:
        """Return the numbers by name, for `metrics.json`."""
        loss = self.int8_loss
        bounds = {"int8_loss": loss.value, "int8_loss_low": loss.low, "int8_loss_high": loss.high}
        parts = {name: getattr(self, name) for name in ("onnx_max_difference", "fp32", "int8", "int8_changed")}
        return parts | bounds


def measure_parity(
    task: Task, state: State, frame: pd.DataFrame, torch: Outputs, fp32: Outputs, int8: Outputs
) -> Parity:
    """Compare the outputs of both graphs with those of PyTorch for the same rows with targets.

    Raises:
        UserError: An output of the int8 graph, or a metric of it, is not a finite number.
    """
    evaluator = evaluator_of(task)
    metric = evaluator.main_metric(state)
    before, after = (evaluator.predictions(outputs, frame, state) for outputs in (torch, int8))
    every_row = np.arange(len(frame))[None]
    columns = ({str(name): table[name].to_numpy() for name in table} for table in (before, after))
    exact, rounded = (float(metric.score(values, every_row)[0]) for values in columns)
    [loss] = paired_differences(before, after, [metric], Bootstrap(), task.target_columns).values()
    rows = {str(name): frame[name].tolist() for name in frame}
    answers = [task.answers(outputs, rows, rows, state) for outputs in (torch, int8)]
    changed = [_gist(one) != _gist(other) for one, other in zip(*answers, strict=True)]
    return Parity(
        metric=metric.name,
        onnx_max_difference=max_difference(torch, fp32),
        fp32=exact,
        int8=rounded,
        int8_loss=loss.as_gain(higher_is_better=metric.higher_is_better),
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


def require_parity(parity: Parity, onnx_tolerance: float) -> None:
    """Check the difference of the fp32 graph against its tolerance.

    Raises:
        UserError: The difference exceeds the tolerance or is NaN.
    """
    if not parity.onnx_max_difference <= onnx_tolerance:
        raise UserError(
            f"fp32 ONNX outputs differ from PyTorch by {parity.onnx_max_difference:.3g}, more than {onnx_tolerance:g}",
            where="export.onnx_tolerance",
            fix="Find the operator that differs before you raise the tolerance",
        )


def int8_verdict(parity: Parity, tolerance: float, rows: int) -> str:
    """Return a line that says which graph serves, and why."""
    loss = parity.int8_loss
    change = f"{'gains' if loss.value < 0 else 'loses'} {abs(loss.value):.4f} {parity.metric}"
    shown = f"int8 {change} on {rows} test rows (interval of the loss {loss.low:.4f} to {loss.high:.4f})"
    if parity.serves_int8(tolerance):
        return f"{shown}, at most the {tolerance:g} of export.int8_tolerance: it serves"
    more = "more than" if parity.int8_loss.low > tolerance else "not shown to be at most"
    return f"{shown}, {more} the {tolerance:g} of export.int8_tolerance: fp32 serves"


def file_sizes(folder: Path, files: dict[str, str]) -> dict[str, float]:
    """Return the size of each file in MB (10^6 bytes) as `NAME_megabytes`."""
    return {f"{name}_megabytes": (folder / file).stat().st_size / 1e6 for name, file in files.items()}


def _gist(answer: dict[str, object]) -> dict[str, object]:
    """Return the text fields of an answer, without its numbers."""
    return {name: value for name, value in answer.items() if isinstance(value, str)}
