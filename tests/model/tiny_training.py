"""A tiny BERT and tiny prepared data, so that real trainings take seconds.

Also a program that runs the train stage on them, for tests that kill it or start several ranks:
`python tiny_training.py ROOT [step N | epoch N | memory N]`, which kills itself at that step or in that
epoch's first batch, or has N MB more memory for each step than before it, with the configuration in
ROOT/config.json.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

VOCABULARY = 60
TASK = {"_target_": "textmill.tasks.text_classification.TextClassification"}
MODEL = {
    "_target_": "textmill.models.pretrained_encoder.PretrainedEncoder",
    "dropout": 0.1,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.0,
}
ARCHITECTURE = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def write_split(folder: Path, rows: int, seed: int, corrupt: dict[int, list[float]] | None = None) -> None:
    """Rows whose label is told by their first token, of 4 to 40 tokens; `corrupt` ones have unusable targets."""
    draw = random.Random(seed)
    labels = [draw.randrange(2) for _ in range(rows)]
    ids = [[label + 1, *(draw.randrange(5, VOCABULARY) for _ in range(draw.randrange(3, 40)))] for label in labels]
    table = pa.table(
        {
            "id": [f"{folder.name}-{row}" for row in range(rows)],
            "text": ["text"] * rows,
            "label": [str(label) for label in labels],
            "words": ["text"] * rows,
            "source": ["made"] * rows,
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "length": pa.array([len(one) for one in ids], pa.int32()),
            "label_id": pa.array(labels, pa.int64()),
        }
    )
    if corrupt is not None:
        shares = [corrupt.get(row, [1.0 - label, float(label)]) for row, label in enumerate(labels)]
        table = table.append_column("label_probabilities", pa.array(shares, pa.list_(pa.float32())))
    folder.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_file(str(folder / "00000.arrow"), table.schema) as writer:
        writer.write_table(table)


def write_prepared(folder: Path, train: int = 200, validation: int = 40) -> Path:
    """A folder as `prepare` makes it."""
    for seed, (name, rows) in enumerate({"train": train, "validation": validation, "test": 10}.items()):
        write_split(folder / name, rows, seed)
    (folder / "state.json").write_text(json.dumps({"labels": ["0", "1"]}))
    (folder / "statistics.json").write_text("{}")
    return folder


def train_config(**changes: Any) -> Any:
    """A `train` section for the tiny BERT."""
    from textmill.config.sections.train import TrainConfig

    values = {
        "seed": 3,
        "task": TASK,
        "model": MODEL,
        "precision": "32-true",
        "batches": {"tokens": 256},
        "optimizer": {"learning_rate": 1e-3},
        "max_epochs": 2,
    }
    return TrainConfig.model_validate(values | changes)


def runtime_config(launcher: dict[str, Any] | None = None, **trainer: Any) -> Any:
    """One CPU process, plain lines."""
    from textmill.config.sections.runtime import RuntimeConfig

    settings = {"trainer": {"accelerator": "cpu", "devices": 1} | trainer, "plan": False, "progress": "plain"}
    return RuntimeConfig.model_validate(settings | {"launcher": launcher or {}})


def make_project(
    root: Path, trainer: dict[str, Any] | None = None, launcher: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """A project's folder with prepared data and a configuration for `main` below."""
    root.mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_prepared(root / "data" / "prepared")
    values = {"model": MODEL | {"architecture": ARCHITECTURE}} | changes
    (root / "config.json").write_text(json.dumps({"train": values, "trainer": trainer or {}, "launcher": launcher}))
    return root


def run_stage(root: Path) -> None:
    """The train stage in this process."""
    from textmill.config.layout import Layout
    from textmill.stages import train

    values = json.loads((root / "config.json").read_text())
    train.main(train_config(**values["train"]), runtime_config(values["launcher"], **values["trainer"]), Layout(root))


def main(root: Path, unit: str = "", number: str = "") -> None:
    """Run the stage; die at a step or in an epoch's first batch; note final weights and the samples of each rank."""
    import torch

    from textmill.stages.runner import run_program
    from textmill.training.meter import Meter
    from textmill.training.module import TrainingModule
    from textmill.training.trainer import Training

    after_batch, run, step = Meter.on_train_batch_end, Training.run, TrainingModule.training_step

    def limited(self: Any, *arguments: Any) -> Any:
        """Limit what a step may take; what comes between the steps has no smaller form."""
        if unit == "memory":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + (int(number) << 20), resource.RLIM_INFINITY))
        return step(self, *arguments)

    def dying(self: Meter, trainer: Any, *rest: Any) -> None:
        if unit == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        after_batch(self, trainer, *rest)
        (root / f"samples-{trainer.global_rank}").write_text(str(self.samples))
        if trainer.is_global_zero:
            (root / "step.new").write_text(str(trainer.global_step))
            (root / "step.new").replace(root / "step")
        reached = {"step": trainer.global_step, "epoch": trainer.current_epoch}
        if unit in reached and reached[unit] >= int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    def noting(self: Training, metrics: Any = None) -> Any:
        trained = run(self, metrics)
        torch.save(trained.network.state_dict(), root / "final.pt")
        return trained

    Meter.on_train_batch_end, Training.run = dying, noting  # type: ignore[method-assign]
    TrainingModule.training_step = limited  # type: ignore[method-assign]
    run_program("train", lambda: run_stage(root))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
