"""Measure language models on tasks in the format of lm-evaluation-harness, with intervals and a gate.

The harness makes the prompts, few-shot examples included, and the metric of each row. The intervals, the paired
comparison and the gate are Textmill's.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from textmill.errors import UserError, first_line
from textmill.files import sha256_folder
from textmill.metrics.base import Columns, Metric, Score, mean_of
from textmill.metrics.bootstrap import Bootstrap, Interval, checked_pair, intervals, paired_gain, paired_test

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from numpy.typing import NDArray

_NO_FILTER = "none"
_WEIGHT = "/weight"
_SAME = "doc"


@dataclass(frozen=True)
class TaskRows:
    """The rows of one task and filter, measured.

    Attributes:
        name: Name of the task, with the filter of its answers if there is one.
        shots: Number of examples in each prompt.
        rows: One row per document: `id`, `doc` (digest) and the metrics' values.
        metrics: Metrics in the order of the task file; the first decides the gate.
    """

    name: str
    shots: int
    rows: pd.DataFrame
    metrics: list[Metric]

    def intervals(self, bootstrap: Bootstrap) -> dict[str, Interval]:
        """Return each metric with its interval."""
        return intervals(self.rows, self.metrics, bootstrap)


@dataclass(frozen=True)
class SuiteRun:
    """A model's results.

    Attributes:
        tasks: Results by task.
        requests: One record per document: prompts, answers and metrics.
    """

    tasks: list[TaskRows]
    requests: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class Gain:
    """The paired comparison of two models in one metric; `status` is that of the gate, None where it does not ask."""

    task: str
    metric: str
    gain: Interval
    status: str | None = None


def suite_digest(file: Path) -> str:
    """Return the SHA-256 over the suite's folder: its tasks may name any file there. Errors: as `run_suite`."""
    _require(file)
    return sha256_folder(file.parent)


def require_harness() -> None:
    """Raise UserError where the extra is not installed; keep the harness's own log quiet."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        fix = "Run pip install --constraint constraints.txt -e '.[suite]'"
        raise UserError("lm-evaluation-harness is not installed", where="--suite", fix=fix) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def run_suite(
    file: Path,
    model: HFLM,
    *,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> SuiteRun:
    """Ask a model all requests of a suite.

    Args:
        file: A task or a group in the harness's YAML format. Its group may name tasks of files beside it, and
            tasks that the harness has. Paths of data are relative to its folder.
        model: Model of `predicting.harness_model`.
        shots: Examples in each prompt, instead of the number in the file.
        limit: Use the first rows of each task only.
        chat: Put each prompt into the model's chat template.

    Raises:
        UserError: The file or its data is missing or invalid.
    """
    require_harness()
    from lm_eval.evaluator import evaluate

    _require(file)
    with redirect_stdout(sys.stderr), chdir(file.resolve().parent):
        loaded = _load(file.name)
        for task in loaded.values():
            _set_shots(task, shots, file)
        try:
            found = evaluate(
                model,
                {"tasks": loaded, "groups": {}, "group_map": {}},
                limit=limit,
                bootstrap_iters=0,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        except UserError:
            raise
        except Exception as error:  # of the harness, a task's template or its code
            raise UserError(f"cannot be run ({_told(error)})", where=str(file), fix="Correct the task file") from error
    samples: dict[str, list[dict[str, Any]]] = found["samples"]
    tasks = [part for name, task in loaded.items() for part in _task_rows(task, samples[name])]
    kept = ("doc_id", "arguments", "filtered_resps", "target", "filter")
    requests = [
        {"task": name, **{key: row[key] for key in (*kept, *row["metrics"])}}
        for name, rows in samples.items()
        for row in rows
    ]
    return SuiteRun(tasks, requests)


def compare_runs(ours: SuiteRun, theirs: SuiteRun, bootstrap: Bootstrap, margin: float | None) -> list[Gain]:
    """Return the gain of `ours` in each metric, on the same rows; positive where it is better.

    With a margin, the first metric of each task decides. It passes if the one-sided bound of its gain is above
    minus the margin, fails if the other bound is not, and is inconclusive otherwise. All tasks must pass, so
    that their number needs no correction.

    Raises:
        UserError: The two runs have different tasks or rows.
    """
    gains = []
    for mine, other in zip(ours.tasks, theirs.tasks, strict=True):
        for number, metric in enumerate(mine.metrics):
            pair = checked_pair(mine.rows, other.rows, [_SAME])
            gain, status = paired_test(mine.rows, other.rows, metric, bootstrap).gain, None
            if margin is not None and number == 0:
                gain = paired_gain(pair, metric, -margin, bootstrap, 1 - bootstrap.confidence)
                status = "pass" if gain.low > -margin else "fail" if gain.high <= -margin else "inconclusive"
            gains.append(Gain(mine.name, metric.name, gain, status))
    return gains


def _require(file: Path) -> None:
    if not file.is_file():
        fix = "Give a task or group file of lm-evaluation-harness; docs/suites.md shows one"
        raise UserError("no such file", where=str(file), fix=fix)


def _load(name: str) -> dict[str, Any]:
    """Return the tasks of a file in the working directory by name, their data loaded.

    The thousands of tasks of the harness take seconds to list: they are only where a name is not here.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        described = load_yaml(Path(name), resolve_func=False)
        known = described.get("group") or described["task"]
        try:
            loaded = TaskManager(include_path=".", include_defaults=False).load(known)
        except KeyError:
            loaded = TaskManager(include_path=".").load(known)
    except Exception as error:  # of YAML, the harness, `datasets` or the network
        fix = "Correct the task file; paths of data are relative to its folder"
        raise UserError(f"cannot be loaded ({_told(error)})", where=name, fix=fix) from error
    tasks: dict[str, Any] = loaded["tasks"]
    if not tasks:
        raise UserError("has no tasks", where=name, fix="Name one under `task:`")
    return tasks


def _set_shots(task: Any, shots: int | None, file: Path) -> None:
    """Set the number of examples in each prompt, which are drawn with the harness's own seed."""
    from lm_eval.evaluator import DEFAULT_OTHER_SEED

    if shots is not None or task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    if task.config.num_fewshot and not (task.has_training_docs() or task.has_validation_docs()):
        fix = "Set training_split or validation_split in the task file"
        raise UserError(f"{task.task_name} has no rows for examples in prompts", where=str(file), fix=fix)


def _told(error: Exception) -> str:
    """Return one line on an error of the harness: where YAML has a problem, its place too."""
    if isinstance(error, KeyError):
        return f"nothing is known of {error}"
    place = getattr(error, "problem_mark", None)
    if place is not None:
        return f"line {place.line + 1}: {getattr(error, 'problem', '')}"
    return first_line(error)


def _task_rows(task: Any, samples: list[dict[str, Any]]) -> list[TaskRows]:
    """Return the rows of a task, one table per filter, in the order of the documents."""
    tables = []
    for used in dict.fromkeys(row["filter"] for row in samples):
        rows = sorted((row for row in samples if row["filter"] == used), key=lambda row: int(row["doc_id"]))
        columns: dict[str, Any] = {"id": [row["doc_id"] for row in rows], _SAME: [row["doc_hash"] for row in rows]}
        metrics = []
        for name in rows[0]["metrics"]:
            values, aggregation = [row[name] for row in rows], task.aggregation()[name]
            columns |= _columns(name, values)
            score = _score(name, aggregation, f"{name}{_WEIGHT}" in columns)
            metrics.append(Metric(name, score, higher_is_better=bool(task.higher_is_better()[name])))
        title = task.task_name if used == _NO_FILTER else f"{task.task_name} ({used})"
        shots = int(task.config.num_fewshot or 0)
        tables.append(TaskRows(title, shots, pd.DataFrame(columns), metrics))
    return tables


def _columns(name: str, values: list[Any]) -> dict[str, Any]:
    """Return the columns of a metric: numbers, a sum with its weight, or whatever its aggregation reads."""
    if all(isinstance(value, int | float | np.number | np.bool_) for value in values):
        return {name: np.array(values, float)}
    if all(isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], float) for value in values):
        sums, weights = np.array(values, float).T
        return {name: sums, f"{name}{_WEIGHT}": weights}
    return {name: pd.Series(values, dtype=object)}


def _score(name: str, aggregation: Callable[[Sequence[Any]], float], weighted: bool) -> Score:
    """Return the harness's aggregation as a function of drawn rows; the usual ones for all draws at once."""
    kind = getattr(aggregation, "__name__", "")
    if kind == "mean":
        return mean_of(name)
    if weighted and kind in ("weighted_perplexity", "bits_per_byte"):
        return partial(_of_weighted_mean, name, bits=kind == "bits_per_byte")

    def score(columns: Columns, index: NDArray[np.intp]) -> NDArray[np.float64]:
        values: Any = columns[name]
        if weighted:
            values = np.fromiter(zip(values, columns[f"{name}{_WEIGHT}"], strict=True), object, len(values))
        return np.array([float(aggregation(list(values[rows]))) for rows in index])

    return score


def _of_weighted_mean(name: str, columns: Columns, index: NDArray[np.intp], *, bits: bool) -> NDArray[np.float64]:
    """Return the perplexity, or the bits of a byte, of each draw; a row has a log-likelihood (nats) and a weight."""
    mean = columns[name][index].sum(axis=1) / columns[f"{name}{_WEIGHT}"][index].sum(axis=1)
    value: NDArray[np.float64] = -mean / np.log(2) if bits else np.exp(-mean)
    return value
