"""Challenger and champion on the same rows in one session: the material of the gate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.config.sections.gate import GateConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.evaluation.evaluator import evaluator_of, predict_rows
from textmill.evaluation.gate import GateInputs, MeasuredVersion
from textmill.predicting.exported import verify
from textmill.registry.promotion.costs import costs_of
from textmill.registry.runs.origin import PREFIX
from textmill.registry.versions.versions import folder_of

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from textmill.predicting.predictor import Predictor

SPLIT = "test"


@dataclass(frozen=True)
class Side:
    """A version, and its exported folder with every digest checked."""

    version: ModelVersion
    folder: Path

    @property
    def name(self) -> str:
        """In words."""
        return f"version {self.version.version}"


def fetched(version: ModelVersion, layout: Layout, *, fresh: bool = False) -> Side:
    """A version with its folder, held against its manifest, and the manifest against the version's tag.

    Raises:
        UserError: A file is changed, missing, unknown or a pickle; it is named.
    """
    folder = folder_of(version, layout, fresh=fresh)
    verify(folder)
    return Side(version, folder)


def measure(sides: list[Side], layout: Layout, gate: GateConfig) -> GateInputs:
    """Let every side answer the prepared test split, and measure what they cost.

    Args:
        sides: The challenger, and the champion where there is one.
        layout: The project, with `data/prepared`.
        gate: Which graph answers, which columns cut slices, what is timed.

    Raises:
        UserError: There is no prepared data, or a version cannot be loaded.
    """
    from textmill.predicting.loading import load_predictor

    prepared = Prepared(layout.prepared)
    test = prepared.split(SPLIT)
    frame: pd.DataFrame = test.drop([name for name in ("input_ids",) if name in test.column_names]).to_pandas()
    if not len(frame):
        raise UserError("the test split has no rows", where=str(prepared.folder / SPLIT), fix="Raise splits.test")
    predictors = [load_predictor(side.folder, gate.precision) for side in sides]
    task, state = predictors[0].task, predictors[0].exported.state
    costs = costs_of(predictors, [side.folder for side in sides], _rows(frame, predictors[0]), gate)
    measured = [
        MeasuredVersion(
            side.name, side.version.tags.get(f"{PREFIX}data.{SPLIT}_sha256"), predict_rows(predictor, frame), cost
        )
        for side, predictor, cost in zip(sides, predictors, costs, strict=True)
    ]
    return GateInputs(
        metrics=evaluator_of(task).metrics(state),
        main_metric=task.main_metric,
        target_columns=task.target_columns,
        challenger=measured[0],
        champion=measured[1] if len(measured) > 1 else None,
        digest=prepared.digest(SPLIT),
        frame=frame,
        overlap=overlap(prepared, sides[0].version, frame, task.text_columns),
    )


def overlap(prepared: Prepared, version: ModelVersion, frame: pd.DataFrame, columns: tuple[str, ...]) -> int | None:
    """Rows of `frame` whose normalised texts the version's training split holds too.

    None when the training split at hand is not the one that the version was made from.
    """
    from textmill.data.minhash import normalise

    if prepared.digest("train") != version.tags.get(f"{PREFIX}data.train_sha256"):
        return None
    asked = list(zip(*(frame[name].map(normalise) for name in columns), strict=True))
    wanted, found = set(asked), set()
    for batch in prepared.split("train").select(list(columns)).to_batches(max_chunksize=10_000):
        texts = ([normalise(text) for text in batch.column(name).to_pylist()] for name in columns)
        found |= wanted.intersection(zip(*texts, strict=True))
    return sum(key in found for key in asked)


def _rows(frame: pd.DataFrame, predictor: Predictor) -> list[dict[str, Any]]:
    records = frame[list(predictor.task.text_columns)].to_dict("records")
    return [{str(name): value for name, value in record.items()} for record in records]
