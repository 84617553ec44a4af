"""A tiny project with a registered model of several versions: two alike, one that answers the wrong way round."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.tiny_export import MODEL, RUNTIME, STATE, TASK, build_evaluated_project, export_config
from textmill.config import resolved
from textmill.config.layout import Layout
from textmill.config.schema import PipelineConfig
from textmill.predicting.exported import write_manifest
from textmill.predicting.loading import load_predictor
from textmill.registry.promotion.challenger import make_challenger
from textmill.registry.runs.tracking import connect, stage_run
from textmill.registry.versions import versions
from textmill.stages import export

NAME = "tiny-reviews"
GATE: dict[str, Any] = {
    "resamples": 200,
    "difference": {"margin": 0.05},
    "slices": {"columns": [], "min_rows": 5, "margin": 0.5},
    # Answers that take a tenth of a millisecond cannot be told apart on a busy machine.
    "budgets": {"latency": {"ratio": 1000}, "rows": 5, "repeats": 1},
}


def build_registry(root: Path, patch: pytest.MonkeyPatch) -> Layout:
    """Versions 1 and 2 answer alike, version 3 (the challenger) has its labels swapped."""
    layout = build_evaluated_project(root)
    write_gate(layout, **GATE)
    learn_the_test_split(layout)
    export.main(export_config(), RUNTIME, layout)
    # Trying a version in a fresh process has tests of its own.
    patch.setattr(versions, "check_in_fresh_process", lambda *_: None)
    for change in (lambda model: None, another_card, swapped_labels):
        change(layout.exported / "model")
        register_export(layout)
    return layout


def learn_the_test_split(layout: Layout) -> None:
    """Let the test split's labels be what the random network answers, but for each tenth row."""
    import numpy as np
    import pyarrow as pa

    from textmill.data.shards import open_split

    with np.load(layout.evaluation / "outputs.npz") as stored:
        answers = stored["logits"].argmax(axis=1)
    answers[::10] = 1 - answers[::10]
    table = open_split(layout.prepared / "test")
    for name, values in (("label", [STATE["labels"][answer] for answer in answers]), ("label_id", answers.tolist())):
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, pa.array(values, table.schema.field(name).type))
    file = next((layout.prepared / "test").iterdir())
    loaded = pa.table({name: table.column(name).combine_chunks() for name in table.column_names})
    with pa.ipc.new_file(str(file.with_suffix(".new")), loaded.schema) as writer:
        writer.write_table(loaded)
    file.with_suffix(".new").replace(file)


def register_export(layout: Layout) -> versions.RegisteredVersion:
    """The exported folder as the next version, of a run of its own."""
    import mlflow

    fingerprint = str(len(list_versions(layout)) + 1)
    connect(RUNTIME, layout)
    with stage_run("export", layout, RUNTIME, upstream=None, fingerprint=fingerprint) as run:
        model, examples = layout.exported / "model", layout.exported / "examples.json"
        registered = versions.register(NAME, model, examples, run.run_id, layout)
        make_challenger(mlflow.MlflowClient(), registered)
        return registered


def another_card(model: Path) -> None:
    """The same model under other words."""
    (model / "README.md").write_text("# Another card\n")
    write_manifest(model)


def swapped_labels(model: Path) -> None:
    """Every answer is the other one."""
    path = model / "textmill.json"
    content = json.loads(path.read_text())
    content["state"]["labels"].reverse()
    path.write_text(json.dumps(content))
    write_manifest(model)
    load_predictor(model)


def write_gate(layout: Layout, **gate: Any) -> None:
    """`data/resolved.yaml` with this gate."""
    source = {"_target_": "textmill.fetching.sources.files.FilesSource", "files": {"all": "x.csv"}}
    content = {
        "fetch": {"source": source},
        "prepare": {"task": TASK, "read": {"columns": {"text": "text", "label": "label"}}},
        "train": {"seed": 1, "task": TASK, "model": MODEL},
        "evaluate": {"seed": 1, "task": TASK, "model": MODEL},
        "export": {"task": TASK, "model": MODEL, "title": "Tiny reviews"},
        "register": {"task": TASK, "name": NAME},
        "runtime": RUNTIME.model_dump(mode="json"),
        "gate": gate,
    }
    resolved.write(layout.resolved, PipelineConfig.model_validate(yaml.safe_load(yaml.safe_dump(content))))


def copy_registry(layout: Layout, target: Path) -> Layout:
    """A project with a database of its own; artefacts stay where they are."""
    return Layout(Path(shutil.copytree(layout.root, target, ignore=shutil.ignore_patterns("mlruns"))))


def list_versions(layout: Layout) -> list[Any]:
    """All versions of the model."""
    return list(store(layout).search_model_versions(f"name = '{NAME}'"))


def store(layout: Layout) -> Any:
    """A client of the project's store."""
    import mlflow

    connect(RUNTIME, layout)
    return mlflow.MlflowClient()


def aliases(layout: Layout) -> dict[str, str]:
    """The model's aliases."""
    return {name: str(version) for name, version in store(layout).get_registered_model(NAME).aliases.items()}


def textmill(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [str(Path(sys.executable).parent / "textmill"), *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    wide = {"COLUMNS": "160"}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=180, env={**inherited, **wide, **(env or {})}
    )
