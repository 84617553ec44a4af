"""Exported models of each task that no training changed: what shows their answers can be tested without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.project import write_tiny_bert
from support.tiny_pairs import MODEL, TASK, pairs, prepared_project
from support.tiny_tasks import KINDS, rows, specification
from support.tiny_text import MODEL as DECODER

_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_ARCHITECTURE = {"model_type": "bert", "vocab_size": 320, "max_position_embeddings": 64, **_SMALL}
_ENCODER = {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder", "architecture": _ARCHITECTURE}
_OF_WORDS = {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder"}
SENTENCES = "The mill ground \U0001f33e wheat. It stood by the <b>tide</b>. It still turns."


def _row(kind: str, number: int, pair: dict[str, str]) -> dict[str, Any]:
    """One made-up row of a task that `tiny_tasks` does not have."""
    return {
        "text_classification": {"text": pair["text"], "label": ("sad", "<i>glad</i>", "calm")[number % 3]},
        "semantic_search": {"text_a": pair["text"], "text_b": pair["translation"]},
        "question_answering": {
            "question": pair["text"],
            "context": f"{pair['translation']} {number}",
            "answers": [{"text": pair["translation"], "answer_start": 0}],
        },
        "translation": pair,
        "extractive_summarisation": {"text": f"{SENTENCES} {number}.", "summary": "It still turns."},
        "language_modelling": {"text": f"{pair['text']} {number}"},
    }[kind]


_OPTIONS: dict[str, dict[str, Any]] = {
    "text_classification": {},
    "semantic_search": {},
    "question_answering": {"max_answer": 4, "overlap": 8},
    "translation": TASK,
    "extractive_summarisation": {"selected": 2, "examples": [SENTENCES]},
    "language_modelling": {"prompts": ["a dog"]},
}


def export_untrained_task(kind: str, root: Path) -> Path:
    """Export a model of random weights of a task, or of a kind of `tiny_tasks`; return its folder."""
    import torch

    from textmill.config.sections.export import ExportConfig
    from textmill.data.prepared import Prepared
    from textmill.export.export import write_served
    from textmill.files import write_json
    from textmill.models.base import Model
    from textmill.predicting.exported import write_manifest
    from textmill.tasks.base import Task

    if kind in KINDS:
        name, options, columns = specification(kind)
        made = rows(kind, 60)
    else:
        name, options = kind, _OPTIONS[kind]
        made = [_row(kind, number, pair) for number, pair in enumerate(pairs(60))]
        columns = {column: column for column in made[0]}
    task_spec = {"_target_": f"textmill.tasks.{name}.{name.title().replace('_', '')}", **options}
    words = kind == "question_answering"  # whose tokenizer must put a special token before a text
    if words:
        write_tiny_bert(root / "data/pretrained")
        origin = {"origin": "package:tiny==1", "version": "1", "sha256": "0" * 64}
        write_json(root / "data/pretrained/provenance.json", origin)
    changes: dict[str, Any] = {"tokenizer": {"kind": "pretrained"}} if words else {}
    layout = prepared_project(root, made, task=task_spec, read={"columns": columns}, max_length=32, **changes)
    prepared, task = Prepared(layout.prepared), Task.build(task_spec)
    spec = {"translation": MODEL, "language_modelling": DECODER, "question_answering": _OF_WORDS}.get(kind, _ENCODER)
    torch.manual_seed(3)
    network = task.build_network(Model.build(spec), layout.pretrained if words else None, prepared.state).eval()
    config = ExportConfig.model_validate({"title": "Tiny", "task": task_spec, "model": spec, "max_length": 32})
    folder = layout.exported / "model"
    folder.parent.mkdir(parents=True)
    write_served(config, task, prepared, network, folder)
    write_manifest(folder)
    return folder
