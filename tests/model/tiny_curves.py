"""Train tiny networks and note the loss of each step: `python tiny_curves.py ROOT RESULT CASE:STRATEGY[:PART]...`.

One process, or one of several with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. PART ends the training
after so many steps, as a kill would, and leaves its checkpoints to a next process.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from tiny_training import MODEL, TASK, VOCABULARY, runtime_config, train_config, write_prepared

ARCHITECTURE = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
# Dropout draws differ between ranks, so that there is none.
CLASSIFIER = {
    "task": TASK | {"r_drop": 1.0},
    "model": MODEL | {"architecture": ARCHITECTURE} | dict.fromkeys(("dropout", "hidden_dropout"), 0.0),
}
DECODER = {
    "_target_": "textmill.models.decoder_model.DecoderModel",
    "n_layers": 2,
    "n_heads": 2,
    "width": 32,
    "hidden_width": 48,
    "max_length": 64,
    "tied": True,
}
PAIR = {**DECODER, "_target_": "textmill.models.encoder_decoder_model.EncoderDecoderModel"}
LANGUAGE = {
    "task": {
        "_target_": "textmill.tasks.language_modelling.LanguageModelling",
        "sequence_length": 16,
        "prompts": ["a"],
    },
    "model": DECODER,
    "batches": {"tokens": 112},
}
EXPERTS = {"feed_forward": "experts", "experts": {"n_experts": 3}}
TOP_K = {"_target_": "textmill.models.routing.top_k.TopK", "balance": 0.1, "z": 0.01}
BIAS = {"_target_": "textmill.models.routing.sigmoid_bias.SigmoidBias", "rate": 0.01}
MUON = {"name": "muon", "learning_rate": 3e-3, "weight_decay": 0.1, "gradient_clip": 0.5}
ADAMW = {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1, "gradient_clip": 0.5}


def experts(router: dict[str, Any], **more: Any) -> dict[str, Any]:
    return LANGUAGE | {"model": DECODER | EXPERTS | {"router": router} | more}


CASES: dict[str, dict[str, Any]] = {
    "classifier": CLASSIFIER | {"optimizer": ADAMW, "ema_decay": 0.9, "batches": {"tokens": 128}},
    "classifier-muon": CLASSIFIER | {"optimizer": MUON | {"layer_decay": 0.5}},
    "dense": LANGUAGE | {"optimizer": ADAMW, "model": DECODER | {"tied": False}},
    "dense-muon": LANGUAGE | {"optimizer": MUON, "ema_decay": 0.9, "activation_checkpointing": True},
    "top_k": experts(TOP_K) | {"optimizer": ADAMW, "batches": {"tokens": 112, "accumulate": 2}},
    "top_k-muon": experts(TOP_K) | {"optimizer": MUON},
    "bias": experts(BIAS) | {"optimizer": ADAMW},
    "bias-muon": experts(BIAS) | {"optimizer": MUON},
    "capacity": experts(TOP_K, experts={"n_experts": 3, "capacity_factor": 0.8}) | {"optimizer": ADAMW, "seed": 5},
    "search": CLASSIFIER
    | {
        "task": {"_target_": "textmill.tasks.semantic_search.SemanticSearch"},
        "optimizer": ADAMW,
        "batches": {"tokens": 128, "accumulate": 2},
    },
    "translation": {
        "task": {
            "_target_": "textmill.tasks.translation.Translation",
            "target_language": "eo",
            "examples": ["a"],
        },
        "model": PAIR,
        "optimizer": MUON,
        "batches": {"tokens": 256},
    },
}
STATE = {"labels": ["0", "1"], "vocabulary_size": VOCABULARY, "end_of_text": 1, "token_bytes": [1] * VOCABULARY}


def write_data(folder: Path) -> Path:
    """Return a folder as `prepare` makes it, with columns for every task above."""
    write_prepared(folder, train=90, validation=21)
    for seed, name in enumerate(("train", "validation")):
        draw = random.Random(seed)
        path = folder / name / "00000.arrow"
        table = pa.ipc.open_file(pa.OSFile(str(path))).read_all()
        for column in ("pair_ids", "labels"):
            rows = [[draw.randrange(5, VOCABULARY) for _ in range(draw.randrange(3, 20))] for _ in range(len(table))]
            table = table.append_column(column, pa.array(rows, pa.list_(pa.int32())))
        for column, texts in (("query_id", 2**40), ("document_id", 20)):  # some queries have a document in common
            table = table.append_column(
                column, pa.array([draw.randrange(texts) for _ in range(len(table))], pa.int64())
            )
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps(STATE))
    return folder


class CutError(Exception):
    """Ends a training as a kill would."""


class Losses:
    """Notes the training loss of each step, and cuts the training after `part` steps."""

    def __init__(self, part: int | None) -> None:
        self.losses: dict[int, float] = {}
        self.validations: dict[int, float] = {}
        self._part = part

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        if "train/loss" in metrics:
            self.losses[step] = metrics["train/loss"]
        if "validation/loss" in metrics:
            self.validations[step] = metrics["validation/loss"]
        if self._part is not None and step > self._part:
            raise CutError


def train(root: Path, case: str, strategy: str, part: int | None) -> dict[str, Any]:
    from torch.distributed.tensor import DTensor

    from textmill.data.prepared import Prepared
    from textmill.training import trainer as module
    from textmill.training.trainer import Training

    module.choose_orthogonal_format = lambda *_, **__: "float32"  # bfloat16 rounds more than is compared

    config = train_config(
        **{"max_epochs": 2, "validations_per_epoch": 2, "checkpoint_seconds": 1e-6 if part else None} | CASES[case]
    )
    trainer = {"strategy": strategy}
    log = Losses(part)
    training = Training(config, runtime_config(**trainer), Prepared(root / "prepared"), None, root / "checkpoints")
    try:
        trained = training.run(log)
    except CutError:
        return {"losses": log.losses, "validations": log.validations, "cut": True}
    held = [each.to_local() if isinstance(each, DTensor) else each for each in trained.network.parameters()]
    share = sum(each.numel() for each in held) / sum(each.numel() for each in trained.network.parameters())
    sums = {name: float(value.double().abs().sum()) for name, value in trained.weights.items()}
    if int(os.environ.get("RANK", "0")) == 0:
        training.folder.remove()
    return {"losses": log.losses, "validations": log.validations, "weights": sums, "share": share}


def main(root: Path, result: Path, *jobs: str) -> None:
    if "RANK" in os.environ:
        here = {"LOCAL_RANK": os.environ["RANK"], "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"], "GROUP_RANK": "0"}
        os.environ |= {"TEXTMILL_LAUNCHED": "", **here}
    found = {}
    for job in jobs:
        case, strategy, *part = job.split(":")
        found[job] = train(root, case, strategy, int(part[0]) if part else None)
    if int(os.environ.get("RANK", "0")) == 0:
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
