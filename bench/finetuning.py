"""Fine-tuning compared with `transformers.Trainer` with its defaults: same weights, rows, rows a batch, threads.

The rival computes in fp32 and pads to the longest of 32 rows drawn at random; ours is the pipeline's
own training with the default recipe, but with R-Drop off, which would compute every row twice. Both
sides take turns, each in a fresh process. Speed is measured on a part of the rows, F1 after training
on all of them. Run `make repro` first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS_IN_A_BATCH = 32
REPEATS = 3
SPEED_ROWS = 1024
EPOCHS = 2
NAMES = {"rival": "`transformers.Trainer`, defaults", "ours": "Textmill, default recipe without R-Drop"}


def ours(data: Path, rows: int | None, seed: int) -> dict[str, float]:
    """Train with the default recipe, batches of at most 32 rows; score the test split."""
    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.data.prepared import Prepared
    from textmill.tasks.base import Task
    from textmill.training.inference import predict_table
    from textmill.training.trainer import Training

    overrides = [f"train.batches.max_rows={ROWS_IN_A_BATCH}", "train.batches.tokens=1000000", f"seed={seed}"]
    overrides += ["task.r_drop=0", f"train.max_epochs={EPOCHS}"]
    config = compose(Layout(ROOT), overrides)
    prepared = Prepared(data / "prepared")
    with tempfile.TemporaryDirectory() as folder:
        if rows is not None:
            prepared = Prepared(part_of(data / "prepared", Path(folder) / "prepared", rows))
        training = Training(config.train, config.runtime, prepared, data / "pretrained", Path(folder) / "checkpoints")
        trained = training.run()
    network = trained.network
    network.load_state_dict(trained.weights)
    task = Task.build(config.train.task)
    test = Prepared(data / "prepared").split("test")
    logits = predict_table(network.eval(), task, test)["logits"]
    return {
        "speed": trained.metrics["samples_per_second"],
        "f1": f1(test["label_id"].to_numpy(), logits.argmax(axis=1)),
    }


def rival(data: Path, rows: int | None, seed: int) -> dict[str, float]:
    """Train with `transformers.Trainer`, changing only what makes the two comparable."""
    import transformers
    from datasets import Dataset

    from textmill.data.prepared import Prepared

    prepared = Prepared(data / "prepared")
    tables = {name: prepared.split(name).select(["input_ids", "label_id"]) for name in ("train", "test")}
    tables = {name: table.rename_columns(["input_ids", "labels"]) for name, table in tables.items()}
    if rows is not None:
        tables["train"] = spread(tables["train"], rows)
    data_sets = {name: Dataset(table) for name, table in tables.items()}
    labels = len(prepared.state["labels"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(data / "pretrained", num_labels=labels)
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=ROWS_IN_A_BATCH,
            num_train_epochs=EPOCHS,
            seed=seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=data_sets["train"],
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        seconds = trainer.train().metrics["train_runtime"]
        logits: Any = trainer.predict(data_sets["test"]).predictions
    return {
        "speed": EPOCHS * len(data_sets["train"]) / seconds,
        "f1": f1(tables["test"]["labels"].to_numpy(), logits.argmax(axis=1)),
    }


def f1(actual: Any, predicted: Any) -> float:
    """Weighted F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(actual, predicted, average="weighted"))


def part_of(source: Path, target: Path, rows: int) -> Path:
    """A copy of prepared data with fewer rows in the training split."""
    import shutil

    from textmill.data.shards import ShardWriter, open_split

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("train"))
    table = spread(open_split(source / "train"), rows)
    with ShardWriter(target / "train", table.schema, rows) as writer:
        writer.write(table)
    return target


def spread(table: Any, rows: int) -> Any:
    """`rows` rows from all over a table, which may be ordered by label."""
    return table.take([number * table.num_rows // rows for number in range(rows)])


def measure(side: str, arguments: argparse.Namespace, seed: int, *, whole: bool) -> dict[str, float]:
    """One side in a process of its own, with the same number of threads as the other."""
    threads = str(len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "bench.finetuning", "--side", side, "--seed", str(seed)]
    command += ["--data", str(arguments.data), *(["--whole"] if whole else [])]
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}, seed {seed}: {result}, {time.perf_counter() - started:.0f} s in all", file=sys.stderr)
    return result


def compare(arguments: argparse.Namespace, figure: str, *, whole: bool) -> dict[str, list[float]]:
    """A figure of both sides over the seeds, measured in turns."""
    found: dict[str, list[float]] = {side: [] for side in NAMES}
    for seed in range(1, arguments.repeats + 1):
        for side in NAMES:
            found[side].append(measure(side, arguments, seed, whole=whole)[figure])
    return found


def print_speed(arguments: argparse.Namespace) -> None:
    """Samples per second on a part of the rows."""
    speed = {side: statistics.median(values) for side, values in compare(arguments, "speed", whole=False).items()}
    print(f"| side | samples/s on {SPEED_ROWS:,} rows, median of {arguments.repeats} |\n|---|---:|")
    for side, name in NAMES.items():
        print(f"| {name} | {speed[side]:.1f} |")
    print(f"| **ratio** (goal ≥ 2.0) | **{speed['ours'] / speed['rival']:.2f}** |")


def print_quality(arguments: argparse.Namespace) -> None:
    """Test F1 after training on all rows."""
    found = compare(arguments, "f1", whole=True)
    seeds = " | ".join(f"seed {seed}" for seed in range(1, arguments.repeats + 1))
    print(f"| test weighted F1, trained on all rows | {seeds} | mean |\n|---|{'---:|' * (arguments.repeats + 1)}")
    for side, name in NAMES.items():
        cells = " | ".join(f"{value:.4f}" for value in found[side])
        print(f"| {name} | {cells} | {statistics.mean(found[side]):.4f} |")
    difference = 100 * (statistics.mean(found["ours"]) - statistics.mean(found["rival"]))
    print(f"\nDifference of the means: **{difference:+.2f} points** (goal: at most 0.5 less).")


def main() -> None:
    """One side, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with prepared/ and pretrained/")
    parser.add_argument("--only", choices=("speed", "quality"), help="measure one of the two tables")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often each side is measured, and seeds")
    parser.add_argument("--side", choices=tuple(NAMES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = None if arguments.whole else SPEED_ROWS
    if arguments.side:
        print(json.dumps({"ours": ours, "rival": rival}[arguments.side](arguments.data, rows, arguments.seed)))
        return
    if arguments.only != "quality":
        print_speed(arguments)
    if arguments.only is None:
        print()
    if arguments.only != "speed":
        print_quality(arguments)


if __name__ == "__main__":
    main()
