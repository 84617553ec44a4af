"""Entities of WNUT-17 compared with `transformers.Trainer`: same weights, rows, rows a batch, epochs, threads.

The rival computes in fp32, pads to the longest of 32 rows drawn at random, and gives each unit its most probable tag.
Ours is the pipeline's own training with the settings of the experiment. Both sides take turns, each in a fresh process.
F1 is seqeval's. Run `dvc exp run -S experiment=wnut17` first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS_IN_A_BATCH = 32
REPEATS = 3
SPEED_ROWS = 1024
NAMES = {"rival": "`transformers.Trainer`, defaults, learning rate 5e-5", "ours": "Textmill, experiment wnut17"}
_IGNORED = -100


def ours(data: Path, rows: int | None, epochs: int, seed: int) -> dict[str, float]:
    """Train with the experiment's settings, batches of at most 32 rows; score the test split."""
    from bench.finetuning import part_of
    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.data.prepared import Prepared
    from textmill.tasks.base import Task
    from textmill.training.inference import predict_table
    from textmill.training.trainer import Training

    overrides = ["experiment=wnut17", f"train.batches.max_rows={ROWS_IN_A_BATCH}", "train.batches.tokens=1000000"]
    config = compose(Layout(ROOT), [*overrides, f"seed={seed}", f"train.max_epochs={epochs}"])
    prepared = Prepared(data / "prepared")
    with tempfile.TemporaryDirectory() as folder:
        if rows is not None:
            prepared = Prepared(part_of(data / "prepared", Path(folder) / "prepared", rows))
        training = Training(config.train, config.runtime, prepared, data / "pretrained", Path(folder) / "checkpoints")
        trained = training.run()
    network = trained.network
    network.load_state_dict(trained.weights)
    task: Any = Task.build(config.train.task)
    test = Prepared(data / "prepared").split("test")
    columns = test.to_pydict()
    found = task.entities(predict_table(network.eval(), task, test), columns, prepared.state)
    return {"speed": trained.metrics["samples_per_second"], "f1": f1(columns, [list(row) for row in found])}


def rival(data: Path, rows: int | None, epochs: int, seed: int) -> dict[str, float]:
    """Train with `transformers.Trainer`, changing only what makes the two comparable."""
    import transformers
    from datasets import Dataset

    from bench.finetuning import spread
    from textmill.data.prepared import Prepared
    from textmill.text.entities import entities_of, unit_spans

    prepared = Prepared(data / "prepared")
    test = prepared.split("test")
    tables = {name: prepared.split(name).select(["input_ids", "tag_ids"]) for name in ("train", "test")}
    tables = {name: table.rename_columns(["input_ids", "labels"]) for name, table in tables.items()}
    if rows is not None:
        tables["train"] = spread(tables["train"], rows)
    tags = prepared.state["tags"]
    model = transformers.AutoModelForTokenClassification.from_pretrained(data / "pretrained", num_labels=len(tags))
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=ROWS_IN_A_BATCH,
            num_train_epochs=epochs,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset(tables["train"]),
            data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
        )
        seconds = trainer.train().metrics["train_runtime"]
        logits: Any = trainer.predict(Dataset(tables["test"])).predictions
    best = logits.argmax(axis=-1)
    columns = test.to_pydict()
    found = []
    for text, labels, row in zip(columns["text"], columns["tag_ids"], best, strict=True):
        units = unit_spans(text, "whitespace")
        of_units = [tags[row[at]] for at, label in enumerate(labels) if label != _IGNORED]
        found.append(entities_of([*of_units, *["O"] * (len(units) - len(of_units))], units))
    return {"speed": epochs * len(tables["train"]) / seconds, "f1": f1(columns, found)}


def f1(columns: dict[str, Any], found: list[Any]) -> float:
    """Entity F1 by seqeval."""
    from seqeval.metrics import f1_score

    from textmill.text.entities import read_entities, tags_of, unit_spans

    units = [unit_spans(text, "whitespace") for text in columns["text"]]
    cells = zip(columns["entities"], columns["text"], units, strict=True)
    true = [tags_of(read_entities(cell, text), spans) for cell, text, spans in cells]
    return float(f1_score(true, [tags_of(row, spans) for row, spans in zip(found, units, strict=True)]))


def measure(side: str, arguments: argparse.Namespace, seed: int, *, whole: bool) -> dict[str, float]:
    """One side in a process of its own, with the same number of threads as the other."""
    command = [sys.executable, "-m", "bench.token_classification", "--side", side, "--seed", str(seed)]
    command += ["--data", str(arguments.data), "--epochs", str(arguments.epochs), *(["--whole"] if whole else [])]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}, seed {seed}: {result}", file=sys.stderr)
    return result


def main() -> None:
    """One side, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with prepared/ and pretrained/")
    parser.add_argument("--only", choices=("speed", "quality"), help="measure one of the two columns")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often each side is measured, and seeds")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--side", choices=tuple(NAMES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        rows, epochs = (None, arguments.epochs) if arguments.whole else (SPEED_ROWS, 1)
        print(json.dumps({"ours": ours, "rival": rival}[arguments.side](arguments.data, rows, epochs, arguments.seed)))
        return
    for figure, whole, title in (
        ("speed", False, f"samples/s on {SPEED_ROWS:,} rows"),
        ("f1", True, f"test F1 of entities, all rows, {arguments.epochs} epochs"),
    ):
        if arguments.only == {"speed": "quality", "f1": "speed"}[figure]:
            continue
        print(f"| side | {title}, median of {arguments.repeats} |\n|---|---:|")
        found: dict[str, list[float]] = {side: [] for side in NAMES}
        for seed in range(1, arguments.repeats + 1):
            for side in NAMES:
                found[side].append(measure(side, arguments, seed, whole=whole)[figure])
        for side, name in NAMES.items():
            print(f"| {name} | {statistics.median(found[side]):.4g} |")
        print()


if __name__ == "__main__":
    main()
