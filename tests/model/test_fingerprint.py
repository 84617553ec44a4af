"""What a training depends on, and in words what differs between two."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tiny_training import train_config, write_prepared

from textmill.data.prepared import Prepared
from textmill.files import sha256_file
from textmill.training.fingerprint import describe_changes, digest, fingerprint_parts


def test_digest_is_of_values_not_of_their_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"b": 2, "a": 1}) == hashlib.sha256(json.dumps({"a": 1, "b": 2}).encode()).hexdigest()


def test_parts_are_configuration_data_weights_code_and_hardware(tmp_path: Path) -> None:
    prepared = Prepared(write_prepared(tmp_path / "prepared"))
    pretrained, start = tmp_path / "pretrained", tmp_path / "start"
    pretrained.mkdir()
    (pretrained / "model").write_text("m")
    start.write_text("s")
    config = train_config()
    found = fingerprint_parts(config, prepared, pretrained, {"precision": "32-true"}, start)
    assert list(found) == ["config", "state", "data", "pretrained", "code", "hardware", "start"]
    assert found["config"]["seed"] == 3
    assert found["config"]["model"]["_target_"].endswith("PretrainedEncoder")
    assert "checkpoint_seconds" not in found["config"]
    assert "faulty_steps" not in found["config"]
    assert found["state"] == digest({"labels": ["0", "1"]})
    assert found["data"] == {name: prepared.digest(name) for name in ("train", "validation")}
    assert found["pretrained"] == {"model": sha256_file(pretrained / "model")}
    assert found["start"] == sha256_file(start)
    assert found["hardware"] == {"precision": "32-true"}
    assert any(name.startswith("textmill.training.trainer:") for name in found["code"]["definitions"])
    without = fingerprint_parts(train_config(checkpoint_seconds=1, faulty_steps="skip"), prepared, None, {})
    assert without["config"] == found["config"]
    assert without["pretrained"] is None
    assert without["start"] is None
    json.dumps(found)


def test_changes_are_told_in_words() -> None:
    old = {
        "config": {"seed": 1, "optimizer": {"learning_rate": 0.1}},
        "state": "a",
        "data": {"train": "b"},
        "pretrained": None,
        "start": None,
        "code": {"definitions": {"m:f": "1"}, "packages": {"torch": "2"}},
        "hardware": {"precision": "32-true"},
    }
    assert describe_changes(old, dict(old)) == []
    new = {
        "config": {"seed": 1, "optimizer": {"learning_rate": 0.2}},
        "state": "b",
        "data": {"train": "c"},
        "pretrained": {"model": "d"},
        "start": "e",
        "code": {"definitions": {"m:f": "2"}, "packages": {"torch": "3"}},
        "hardware": {"precision": "bf16-true"},
    }
    assert describe_changes(old, new) == [
        "train.optimizer.learning_rate 0.1 → 0.2",
        "m.f changed",
        "package torch 2 → 3",
        "what prepare learned (labels, vocabulary) changed",
        "the train or validation split changed",
        "the pretrained weights changed",
        "the weights to start from changed",
        'hardware.precision "32-true" → "bf16-true"',
    ]
