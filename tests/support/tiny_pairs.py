"""Made-up sentences with what they are in a made-up language, and a project prepared from them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.tiny_text import RUNTIME
from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.train import TrainConfig

WORDS = {
    "a": "un",
    "dog": "kano",
    "cat": "felo",
    "man": "homo",
    "runs": "kuri",
    "sees": "vidi",
    "red": "ruja",
    "big": "granda",
    "and": "kai",
    "sits": "sidi",
}
TASK = {
    "_target_": "textmill.tasks.translation.Translation",
    "target_language": "eo",
    "max_ratio": 4.0,
    "generation": {"temperature": 0.0, "beams": 2, "max_new_tokens": 24},
    "examples": ["a dog runs", "a man sees a cat"],
}
MODEL = {
    "_target_": "textmill.models.encoder_decoder_model.EncoderDecoderModel",
    "n_layers": 1,
    "n_heads": 2,
    "width": 32,
    "max_length": 48,
}
COLUMNS = {"text": "text", "translation": "translation"}


def pairs(rows: int, seed: int = 3) -> list[dict[str, str]]:
    """Sentences of three to six words, each told word by word."""
    draw = random.Random(seed)
    found = []
    for _ in range(rows):
        words = [draw.choice(list(WORDS)) for _ in range(draw.randint(3, 6))]
        found.append({"text": " ".join(words), "translation": " ".join(WORDS[word] for word in words)})
    return found


def prepared_project(root: Path, rows: list[dict[str, Any]], **changes: Any) -> Layout:
    """A project with these rows, prepared."""
    from textmill.data.prepare import prepare

    layout = Layout(root)
    raw = layout.raw / "files" / "all"
    raw.mkdir(parents=True)
    layout.pretrained.mkdir(parents=True, exist_ok=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    provenance = {"origin": "made up", "version": None, "licence": "MIT", "sha256": None, "files": {}}
    (layout.raw / "provenance.json").write_text(json.dumps(provenance))
    (raw / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "task": TASK,
        "read": {"columns": COLUMNS},
        "tokenizer": {"kind": "byte_bpe", "vocabulary_size": 320},
        "splits": {"validation": 0.1, "test": 0.1},
        "duplicates": {"near": False},
        "max_length": 32,
    }
    prepare(PrepareConfig.model_validate(values | changes), RUNTIME, layout)
    return layout


def run_stages(layout: Layout, task: dict[str, Any], model: dict[str, Any], **train: Any) -> None:
    """Train, evaluate and export."""
    from textmill.stages import evaluate, export
    from textmill.stages import train as training

    values: dict[str, Any] = {
        "seed": 1,
        "task": task,
        "model": model,
        "precision": "32-true",
        "optimizer": {"name": "muon", "learning_rate": 0.02, "schedule": "stable"},
        "batches": {"tokens": 512},
        "max_epochs": 10,
    }
    training.main(TrainConfig.model_validate(values | train), RUNTIME, layout)
    options = {"resamples": 100, "min_slice": 5}
    evaluate.main(EvaluateConfig.model_validate({"seed": 1, "task": task, "model": model} | options), RUNTIME, layout)
    options = {"max_length": 32, "title": "Tiny", "int8_tolerance": 100.0}
    export.main(ExportConfig.model_validate({"task": task, "model": model} | options), RUNTIME, layout)
