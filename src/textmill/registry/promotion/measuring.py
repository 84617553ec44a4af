"""Measure challenger and champion on the same rows, together: the input of the gate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.config.layout import Layout
from textmill.config.sections.gate import GateConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.evaluation.evaluator import evaluator_of, predict_rows
from textmill.evaluation.gate import GateInputs, MeasuredVersion
from textmill.registry.promotion.costs import measure_costs
from textmill.registry.runs.origin import PREFIX
from textmill.registry.versions.version_files import fetch_folder

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

SPLIT = "test"


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
    """Predict the prepared test split with each version and measure the costs.

    The first version is the challenger, the second, if any, the champion.

    Raises:
        UserError: There is no prepared data, or a version cannot be loaded.
    """
    from textmill.predicting.loading import load_predictor

    prepared = Prepared(layout.prepared)
    test = prepared.split(SPLIT)
    frame: pd.DataFrame = test.drop([name for name in ("input_ids",) if name in test.column_names]).to_pandas()
    if not len(frame):
        raise UserError("the test split has no rows", where=str(prepared.folder / SPLIT), fix="Raise splits.test")
    predictors = [load_predictor(version.folder, gate.precision) for version in versions]
    task, state = predictors[0].task, predictors[0].exported.state
    rows = test.select(list(task.text_columns)).to_pylist()
    costs = measure_costs(predictors, [version.folder for version in versions], rows, gate)
    measured = [
        MeasuredVersion(
            f"version {fetched.version.version}",
            fetched.version.tags.get(f"{PREFIX}data.{SPLIT}_sha256"),
            predict_rows(predictor, frame),
            cost,
        )
        for fetched, predictor, cost in zip(versions, predictors, costs, strict=True)
    ]
    return GateInputs(
        metrics=evaluator_of(task).metrics(state),
        main_metric=task.main_metric,
        target_columns=task.target_columns,
        challenger=measured[0],
        champion=measured[1] if len(measured) > 1 else None,
        digest=prepared.digest(SPLIT),
        frame=frame,
        overlap=count_overlap(prepared, versions[0].version, frame, task.text_columns),
    )


def count_overlap(
    prepared: Prepared, version: ModelVersion, frame: pd.DataFrame, columns: tuple[str, ...]
) -> int | None:
    """Return the number of rows whose normalised texts are in the version's training split.

    None if the prepared training split is not the one of the version.
    """
    from textmill.data.minhash import normalise

    if prepared.digest("train") != version.tags.get(f"{PREFIX}data.train_sha256"):
        return None
    keys = list(zip(*(frame[name].map(normalise) for name in columns), strict=True))
    wanted, found = set(keys), set()
    for batch in prepared.split("train").select(list(columns)).to_batches(max_chunksize=10_000):
        texts = ([normalise(text) for text in batch.column(name).to_pylist()] for name in columns)
        found |= wanted.intersection(zip(*texts, strict=True))
    return sum(key in found for key in keys)
