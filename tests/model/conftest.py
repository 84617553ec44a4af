"""A tiny BERT and tiny prepared data, so that real trainings take seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

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


def write_split(folder: Path, rows: int, seed: int) -> None:
    """Rows whose label is told by their first token, of 4 to 40 tokens."""
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
    folder.mkdir(parents=True)
    with pa.ipc.new_file(str(folder / "00000.arrow"), table.schema) as writer:
        writer.write_table(table)


def write_prepared(folder: Path, train: int = 200, validation: int = 40) -> Path:
    """A folder as `prepare` makes it."""
    for seed, (name, rows) in enumerate({"train": train, "validation": validation, "test": 10}.items()):
        write_split(folder / name, rows, seed)
    (folder / "state.json").write_text(json.dumps({"labels": ["0", "1"]}))
    (folder / "statistics.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, as `fetch` would bring it."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    values = {key: value for key, value in ARCHITECTURE.items() if key != "model_type"}
    BertModel(BertConfig(**values)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny prepared data."""
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared")


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


def runtime_config(**trainer: Any) -> Any:
    """One CPU process, plain lines."""
    from textmill.config.sections.runtime import RuntimeConfig

    return RuntimeConfig.model_validate(
        {"trainer": {"accelerator": "cpu", "devices": 1} | trainer, "progress": "plain"}
    )
