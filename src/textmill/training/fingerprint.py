"""Digest what the result of a training depends on: only the same training is resumed."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from textmill.config import differences
from textmill.config.code import Code
from textmill.config.layout import find_layout
from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.files import folder_digests, sha256_file

_NOT_COUNTED = {"checkpoint_seconds", "faulty_steps"}
_DATA = {
    "state": "what prepare learned (labels, vocabulary)",
    "data": "the train or validation split",
    "pretrained": "the pretrained weights",
    "start": "the weights to start from",
}


def fingerprint_parts(
    config: TrainConfig,
    prepared: Prepared,
    pretrained: Path | None,
    hardware: dict[str, Any],
    start: Path | None = None,
) -> dict[str, Any]:
    """Return what decides a training: configuration, data, weights to start from, code, pins and hardware.

    Args:
        config: The `train` section. How often checkpoints are written, and what a faulty step does, do not count.
        prepared: The data; its train and validation splits and the task's state count.
        pretrained: The folder of pretrained weights, or None.
        hardware: What makes a resumed training go on differently: kind of device, precision.
        start: The file of weights that another training left to go on from, or None.
    """
    return {
        "config": config.model_dump(mode="json", exclude=_NOT_COUNTED),
        "state": digest(prepared.state),
        "data": {name: prepared.digest(name) for name in ("train", "validation")},
        "pretrained": folder_digests(pretrained) if pretrained is not None else None,
        "code": _code(config.model_dump_json()),
        "hardware": hardware,
        "start": sha256_file(start) if start is not None else None,
    }


def digest(parts: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def describe_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return in words what differs between the parts of two trainings."""
    found = [each.text for each in differences.parameters(old["config"], new["config"], "train")]
    found += [each.text for each in differences.code(old["code"], new["code"])]
    found += [f"{name} changed" for key, name in _DATA.items() if old[key] != new[key]]
    return found + [each.text for each in differences.parameters(old["hardware"], new["hardware"], "hardware")]


@cache
def _code(section: str) -> dict[str, Any]:
    """The code that the stage `train` reaches with this section, and the pins of the project around it, if any."""
    layout = None
    with suppress(UserError):
        layout = find_layout()
    code = Code(layout)
    reached = code.stage("train", {"train": json.loads(section)})
    code.save([reached])
    return reached.parts()
