"""Made-up plays, and a project that was trained on them, in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from textmill.config.layout import Layout
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig

TASK = {
    "_target_": "textmill.tasks.language_modelling.LanguageModelling",
    "sequence_length": 32,
    "prompts": ["ROMEO.\n", "the moon"],
    "sample_tokens": 12,
}
MODEL = {
    "_target_": "textmill.models.decoder_model.DecoderModel",
    "n_layers": 2,
    "n_heads": 2,
    "width": 32,
    "max_length": 48,
}
EXPERTS = MODEL | {
    "feed_forward": "experts",
    "experts": {"n_experts": 4},
    "router": {"_target_": "textmill.models.routing.top_k.TopK"},
}
RUNTIME = RuntimeConfig.model_validate(
    {"trainer": {"accelerator": "cpu", "devices": 1}, "progress": "plain", "tracking_experiment": "tiny-plays"}
)


def play(seed: int, speeches: int = 30) -> str:
    """Speeches of a few words each, with stage directions."""
    draw = random.Random(seed)
    names, nouns, verbs = ["ROMEO", "JULIET", "NURSE"], ["moon", "night", "rose", "sword"], ["loves", "sees", "hates"]
    lines = [f"THE PLAY OF NUMBER {seed}", ""]
    for _ in range(speeches):
        speech = " ".join(f"the {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)}" for _ in range(3))
        lines += [f"{draw.choice(names)}.", f"{speech}.", ""]
    return "\n".join(lines)


def prepared_project(root: Path, **changes: Any) -> Layout:
    """A project with ten plays, prepared."""
    from textmill.data.prepare import prepare

    layout = Layout(root)
    raw = layout.raw / "files" / "all"
    raw.mkdir(parents=True)
    layout.pretrained.mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    provenance = {"origin": "made up", "version": None, "licence": "MIT", "sha256": None, "files": {}}
    (layout.raw / "provenance.json").write_text(json.dumps(provenance))
    for number in range(10):
        (raw / f"play_{number}.txt").write_text(play(number))
    values: dict[str, Any] = {
        "task": TASK,
        "read": {"columns": {"text": "text"}},
        "tokenizer": {"kind": "byte_bpe", "vocabulary_size": 300},
        "splits": {"validation": 0.2, "test": 0.2},
        "duplicates": {"near": False},
    }
    prepare(PrepareConfig.model_validate(values | changes), RUNTIME, layout)
    return layout


def train_values(**changes: Any) -> dict[str, Any]:
    """A `train` section."""
    values: dict[str, Any] = {
        "seed": 1,
        "task": TASK,
        "model": MODEL,
        "precision": "32-true",
        "optimizer": {"name": "muon", "learning_rate": 0.01, "schedule": "stable"},
        "batches": {"tokens": 256},
        "max_epochs": 3,
    }
    return values | changes
