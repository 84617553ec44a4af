"""Check the version that a training starts from: `train.start: champion`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textmill.config.layout import START
from textmill.config.plugins import TARGET, renamed
from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.data.tokenizing import FILE
from textmill.errors import UserError
from textmill.files import read_json, read_optional, sha256_file
from textmill.models.lora import without_adapters
from textmill.training.loading import MODEL_FOLDER, WEIGHTS_FILE

_FIX = "Remove train.start to train from the beginning"
_FREE = {"pretrained", "pretrained_sha256", "frozen_groups", TARGET}
"""Options of a model that do not change its architecture, and its class, whose old names count as the new one."""


def started_from(pretrained: Path) -> dict[str, Any]:
    """Return the provenance of the version that `fetch` brought to start from; empty without one."""
    return dict(read_optional(pretrained / "provenance.json").get(START) or {})


def start_weights(config: TrainConfig, prepared: Prepared, pretrained: Path | None) -> Path | None:
    """Return the file of weights that `train.start` names; None without the setting.

    Args:
        config: The `train` section.
        prepared: The data; labels and tokenizer must be those of the version.
        pretrained: The folder `data/pretrained`.

    Raises:
        UserError: The version was not fetched, or its task, labels, tokenizer or architecture differ.
    """
    if config.start is None:
        return None
    folder = pretrained / START if pretrained is not None else Path(START)
    weights = folder / MODEL_FOLDER / WEIGHTS_FILE
    if pretrained is None or not weights.is_file():
        raise UserError("the version to start from was not fetched", where=str(weights), fix="Run `dvc repro fetch`")
    noted = started_from(pretrained)
    name = f"{noted.get('origin')}/{noted.get('version')}"
    version = read_json(folder / "textmill.json")
    if (problem := _difference(config, prepared, version, folder)) is not None:
        raise UserError(f"cannot start from {name}: {problem}", where="train.start", fix=_FIX)
    return weights


def unfitting(error: RuntimeError) -> UserError:
    """Return the error of weights that do not fit the network."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"the weights to start from do not fit the network ({reason})", where="train.start", fix=_FIX)


def _difference(config: TrainConfig, prepared: Prepared, version: Mapping[str, Any], folder: Path) -> str | None:
    """Return the first difference that forbids to go on from the version's weights, as a clause."""
    tasks = [renamed(spec[TARGET]) for spec in (version["task"], config.task)]
    if tasks[0] != tasks[1]:
        return f"its task is {tasks[0].rpartition('.')[2]}, not {tasks[1].rpartition('.')[2]}"
    theirs, ours = version["state"].get("labels"), prepared.state.get("labels")
    if theirs != ours:
        new = sorted(set(ours or []) - set(theirs or []))
        return f"the data has the new label(s) {', '.join(new)}" if new else f"its labels are {theirs}, not {ours}"
    if sha256_file(folder / FILE) != sha256_file(prepared.tokenizer_folder / FILE):
        return "its tokenizer is another one"
    models = [without_adapters(spec) for spec in (version["model"], config.model)]
    if renamed(models[0][TARGET]) != renamed(models[1][TARGET]):
        return "its model is of another class"
    for option in sorted({*models[0], *models[1]} - _FREE):
        if "dropout" not in option and models[0].get(option) != models[1].get(option):
            return f"its model.{option} is {models[0].get(option)}, not {models[1].get(option)}"
    return None
