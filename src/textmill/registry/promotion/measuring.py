"""Measure challenger and champion on the same rows, together: the input of the gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.config.layout import Layout
from textmill.config.sections.gate import GateConfig
from textmill.data.overlap import overlapping_rows
from textmill.data.seen import row_sketch
from textmill.errors import UserError
from textmill.evaluation.evaluator import evaluator_of, predict_rows
from textmill.evaluation.gate import GateInputs, MeasuredVersion, UnseenRows
from textmill.metrics.likelihood import likelihood_metrics
from textmill.registry.lineage.version_data import UnavailableError, prepared_data
from textmill.registry.promotion.costs import measure_costs
from textmill.registry.promotion.evaluation_set import EvaluationSet, evaluation_set, version_digest
from textmill.registry.promotion.unseen import unseen_rows
from textmill.registry.versions.version_files import fetch_folder

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from textmill.predicting.predictor import Predictor
    from textmill.tasks.base import Task


@dataclass(frozen=True)
class FetchedVersion:
    """A version and its exported folder with verified digests."""

    version: ModelVersion
    folder: Path


def fetch_verified(version: ModelVersion, layout: Layout, *, fresh: bool = False) -> FetchedVersion:
    """Fetch a version's folder, every file of the version compared with the registered digests.

    Raises:
        UserError: A file was changed, is missing, unexpected or a pickle; the error names it.
    """
    return FetchedVersion(version, fetch_folder(version, layout, fresh=fresh))


def measure(versions: list[FetchedVersion], layout: Layout, gate: GateConfig) -> GateInputs:
    """Predict the challenger's own test split with each version and measure the costs.

    The first version is the challenger, the second, if any, the champion, the third the anchor. If they were made
    with different test splits, the champion's is predicted too, where it is at hand, and of each split the rows
    are found that none of them has seen.

    Raises:
        UserError: A version cannot be loaded, or its data is not available.
    """
    from textmill.predicting.loading import load_predictor

    predictors = [load_predictor(version.folder, gate.precision) for version in versions]
    task, challenger = predictors[0].task, versions[0].version
    _require_same_columns(versions, [predictor.task for predictor in predictors])
    rows = evaluation_set(challenger, predictors[0], layout)
    costs = measure_costs(predictors, [version.folder for version in versions], rows.inputs, gate)
    measured = [
        MeasuredVersion(
            f"version {fetched.version.version}",
            _digest(fetched, layout, challenger, rows.digest),
            predict_rows(predictor, rows.frame),
            cost,
        )
        for fetched, predictor, cost in zip(versions, predictors, costs, strict=True)
    ]
    _require_comparable(measured, gate.difference.metric or task.main_metric)
    inputs = GateInputs(
        metrics=evaluator_of(task).metrics(predictors[0].exported.state),
        main_metric=task.main_metric,
        target_columns=task.target_columns,
        challenger=measured[0],
        champion=measured[1] if len(measured) > 1 else None,
        anchor=measured[2] if len(measured) > 2 else None,
        digest=rows.digest,
        frame=rows.frame,
        overlap=count_overlap(challenger, rows.frame, task.text_columns, layout),
        sketch=row_sketch(rows.texts),
    )
    if inputs.champion is None or all(one.digest == rows.digest for one in measured):
        return inputs
    return replace(inputs, unseen=_unseen(inputs, [one.version for one in versions], predictors, rows, layout))


def _unseen(
    inputs: GateInputs,
    versions: list[ModelVersion],
    predictors: list[Predictor],
    rows: EvaluationSet,
    layout: Layout,
) -> list[UnseenRows]:
    """Return the unseen rows of the challenger's test split, and of the champion's if that is another one."""
    assert inputs.champion is not None, "nothing to compare with"
    found = [unseen_rows(inputs, versions, rows, layout, inputs.challenger.name)]
    if inputs.champion.digest == rows.digest:
        return found
    try:
        proven = evaluation_set(versions[1], predictors[1], layout)
    except UnavailableError:
        return found

    def predict(frame: pd.DataFrame) -> list[pd.DataFrame]:
        return [predict_rows(predictor, frame) for predictor in predictors]

    return [*found, unseen_rows(inputs, versions, proven, layout, inputs.champion.name, predict)]


def _digest(fetched: FetchedVersion, layout: Layout, challenger: ModelVersion, digest: str) -> str | None:
    """Return the digest of a version's test split, or None if the split must be read and is not available."""
    try:
        return version_digest(fetched.version, fetched.folder, layout, challenger, digest)
    except UnavailableError:
        return None


def _require_same_columns(versions: list[FetchedVersion], tasks: list[Task]) -> None:
    """Raise UserError if a version cannot read the challenger's rows, since its task has other columns."""
    for fetched, task in zip(versions[1:], tasks[1:], strict=True):
        if {*task.text_columns, *task.target_columns} != {*tasks[0].text_columns, *tasks[0].target_columns}:
            names = f"version {versions[0].version.version} ({tasks[0].name}) and version {fetched.version.version}"
            fix = "Register each task under a name of its own (`name` of the experiment)"
            raise UserError(f"{names} ({task.name}) are of different tasks", where=fetched.version.name, fix=fix)


def _require_comparable(measured: list[MeasuredVersion], metric: str) -> None:
    """Raise UserError if the metric counts tokens, and the versions divide the texts into different ones."""
    if metric not in {known.name for known in likelihood_metrics()} or "targets" not in measured[0].predictions:
        return
    tokens = measured[0].predictions["targets"].to_numpy()
    for other in measured[1:]:
        if (other.predictions["targets"].to_numpy() != tokens).any():
            names = f"{measured[0].name} and {other.name}"
            fix = "Compare versions with the same tokenizer, or set gate.difference.metric to bits_per_byte"
            raise UserError(f"{names} divide the texts into different tokens, and {metric} is per token", fix=fix)


def count_overlap(version: ModelVersion, frame: pd.DataFrame, columns: tuple[str, ...], layout: Layout) -> int | None:
    """Return the number of rows that the version's training split also has, or None if it is not available.

    These are rows with equal texts, near-duplicates, and rows that share a passage with a training row; see
    `data.passages`.
    """
    texts = [frame[name].tolist() for name in columns]
    try:
        with prepared_data(version, layout, ["train"]) as prepared:
            return int(overlapping_rows(texts, prepared.split("train").select(list(columns))).sum())
    except UnavailableError:
        return None
