"""What a training's result depends on, as one digest: only the same training is resumed."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import textmill
from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.files import sha256_file

_ROOMS = ("models", "training", "tasks")
_LIBRARIES = ("torch", "pytorch-lightning", "transformers")


def fingerprint(
    config: TrainConfig,
    prepared: Prepared,
    pretrained: Path | None,
    hardware: dict[str, Any],
    start: Path | None = None,
) -> str:
    """SHA-256 of configuration, data, weights to start from, code, library versions and hardware.

    Args:
        config: The `train` section. How often checkpoints are written does not count.
        prepared: The data; its train and validation splits and the task's state count.
        pretrained: The folder of pretrained weights, or None.
        hardware: Whatever makes a resumed training go on differently: precision, number of ranks.
        start: The file of weights that another training left to go on from, or None.
    """
    parts: dict[str, Any] = {
        "config": config.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "state": prepared.state,
        "data": {name: prepared.digest(name) for name in ("train", "validation")},
        "pretrained": _files(pretrained) if pretrained is not None else None,
        "code": {room: _files(Path(textmill.__file__).parent / room, "*.py") for room in _ROOMS},
        "libraries": {name: version(name) for name in _LIBRARIES},
        "hardware": hardware,
    }
    if start is not None:
        parts["start"] = sha256_file(start)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _files(folder: Path, pattern: str = "*") -> dict[str, str]:
    paths = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
