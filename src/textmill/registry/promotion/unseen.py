"""Find the rows of a test split that the compared versions have not seen, when they were made with different splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from textmill.config.layout import Layout
from textmill.data.overlap import overlapping_rows
from textmill.data.seen import find_seen, row_sketch
from textmill.evaluation.gate import GateInputs, MeasuredVersion, UnseenRows
from textmill.registry.lineage.version_data import UnavailableError, prepared_data
from textmill.registry.versions.versions import seen_record

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from textmill.registry.promotion.evaluation_set import EvaluationSet


def seen_rows(
    version: ModelVersion, columns: Sequence[str], texts: Sequence[Sequence[str]], layout: Layout
) -> NDArray[np.bool_] | None:
    """Return a mask of the rows that a version was made with, or None if that is not known.

    The record that is stored with the version tells. For versions registered before there were records, the
    training and validation splits of their lineage tell.

    Raises:
        TamperedError: The record was changed.
    """
    record = seen_record(version)
    if record is not None:
        return find_seen(record, texts)
    seen = np.zeros(len(texts[0]), bool)
    try:
        for split in ("train", "validation"):
            with prepared_data(version, layout, [split]) as prepared:
                seen |= overlapping_rows(texts, prepared.split(split).select(list(columns)))
    except UnavailableError:
        return None
    return seen


def unseen_rows(
    inputs: GateInputs,
    versions: Sequence[ModelVersion],
    split: EvaluationSet,
    layout: Layout,
    owner: str,
    predict: Callable[[pd.DataFrame], list[pd.DataFrame]] | None = None,
) -> UnseenRows:
    """Return the rows of one version's test split that no compared version has seen, with all measurements on them.

    Args:
        inputs: Measurements on the challenger's test split.
        versions: Challenger, champion and anchor, as far as there are any.
        split: The test split to restrict.
        layout: Paths of the project.
        owner: Name of the version whose test split it is; the rows of this digest are unseen by definition.
        predict: Predicts the split with each version; None if it is the split of `inputs`.
    """
    measured = [one for one in (inputs.challenger, inputs.champion, inputs.anchor) if one is not None]
    kept, seen, unknown = np.ones(len(split.texts[0]), bool), {}, set()
    for version, one in zip(versions, measured, strict=True):
        if one.digest == split.digest:
            continue
        mask = seen_rows(version, split.columns, split.texts, layout)
        if mask is None:
            unknown.add(one.name)
            continue
        kept &= ~mask
        seen[one.name] = int(mask.sum())
    digest = hashlib.sha256(split.digest.encode() + np.packbits(kept).tobytes()).hexdigest()
    rows = np.flatnonzero(kept[split.row])
    tables = [one.predictions for one in measured] if predict is None else predict(split.frame)
    ids = split.frame["id"].iloc[rows]

    def restricted(one: MeasuredVersion, table: pd.DataFrame) -> MeasuredVersion:
        known = None if one.name in unknown else digest
        return replace(one, digest=known, predictions=table[table["id"].isin(ids)].reset_index(drop=True))

    cut = [restricted(*pair) for pair in zip(measured, tables, strict=True)]
    on_unseen = replace(
        inputs,
        challenger=cut[0],
        champion=cut[1],
        anchor=cut[2] if len(cut) > 2 else None,
        digest=digest,
        frame=split.frame.iloc[rows].reset_index(drop=True),
        sketch=row_sketch([np.array(column, object)[kept].tolist() for column in split.texts]),
    )
    return UnseenRows(owner, len(split.frame), seen, unknown & {measured[0].name, measured[1].name}, on_unseen)
