"""Fine-tuning against `transformers.Trainer` with its defaults: same weights, rows, rows a batch, threads.

The rival computes in fp32 and pads to the longest of 32 rows drawn at random; ours is the pipeline's
own training with the default recipe, but with R-Drop off, which would compute every row twice. Both
sides take turns, each in a fresh process. Run `make repro` first. `--quick` trains on a part of the
rows, where F1 tells nothing.
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

ROOT = Path(__file__).resolve().parent.parent
ROWS_IN_A_BATCH = 32
REPEATS = 3
QUICK_ROWS = 1024


def ours(data: Path, rows: int | None, seed: int) -> dict[str, float]:
    """Train with the default recipe, batches of at most 32 rows; score the test split."""
    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.config.plugins import build
    from textmill.data.prepared import Prepared
    from textmill.tasks.base import Task
    from textmill.training.inference import predict_table
    from textmill.training.training import Training

    overrides = [f"train.batches.max_rows={ROWS_IN_A_BATCH}", "train.batches.tokens=1000000", f"seed={seed}"]
    overrides.append("task.r_drop=0")
    config = compose(Layout(ROOT), overrides)
    prepared = Prepared(data / "prepared")
    with tempfile.TemporaryDirectory() as folder:
        if rows is not None:
            prepared = Prepared(part_of(data / "prepared", Path(folder) / "prepared", rows))
        training = Training(config.train, config.runtime, prepared, data / "pretrained", Path(folder) / "checkpoints")
        trained = training.run()
    network = trained.network
    network.load_state_dict(trained.weights)
    task = build(config.train.task, Task)
    test = Prepared(data / "prepared").split("test")
    logits = predict_table(network.eval(), task, test)["logits"]
    return {
        "samples_per_second": trained.figures["samples_per_second"],
        "epochs": config.train.max_epochs,
        "f1": f1(test["label_id"].to_numpy(), logits.argmax(axis=1)),
    }


def rival(data: Path, rows: int | None, seed: int, epochs: int) -> dict[str, float]:
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
            num_train_epochs=epochs,
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
        logits = trainer.predict(data_sets["test"]).predictions
    return {
        "samples_per_second": epochs * len(data_sets["train"]) / seconds,
        "epochs": epochs,
        "f1": f1(tables["test"]["labels"].to_numpy(), logits.argmax(axis=1)),
    }


def f1(actual, predicted) -> float:
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


def spread(table, rows: int):
    """`rows` rows from all over a table, which may be ordered by label."""
    return table.take([number * table.num_rows // rows for number in range(rows)])


def measure(side: str, arguments: argparse.Namespace, seed: int, epochs: int) -> dict[str, float]:
    """One side in a process of its own, with the same number of threads as the other."""
    threads = str(len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "bench.finetuning", "--side", side, "--seed", str(seed), "--epochs", str(epochs)]
    command += ["--data", str(arguments.data), *(["--quick"] if arguments.quick else [])]
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}, seed {seed}: {result}, {time.perf_counter() - started:.0f} s in all", file=sys.stderr)
    return result


def compare(arguments: argparse.Namespace) -> None:
    """Measure both sides in turns and print the table."""
    results: dict[str, list[dict[str, float]]] = {"ours": [], "rival": []}
    for seed in range(1, REPEATS + 1):
        results["ours"].append(measure("ours", arguments, seed, 0))
        results["rival"].append(measure("rival", arguments, seed, int(results["ours"][0]["epochs"])))
    speed = {side: statistics.median(one["samples_per_second"] for one in runs) for side, runs in results.items()}
    scores = {side: statistics.mean(one["f1"] for one in runs) for side, runs in results.items()}
    names = {"ours": "Textmill, default recipe without R-Drop", "rival": "`transformers.Trainer`, defaults"}
    print(f"| side | samples/s, median of {REPEATS} | test weighted F1, mean of {REPEATS} seeds |\n|---|---:|---:|")
    for side in ("rival", "ours"):
        print(f"| {names[side]} | {speed[side]:.1f} | {scores[side]:.4f} |")
    ratio, difference = speed["ours"] / speed["rival"], 100 * (scores["ours"] - scores["rival"])
    print(f"| **ratio and difference** | **{ratio:.2f}x** | **{difference:+.2f} points** |")
    print("| goal | ≥ 2.0x | at most 0.5 points less |")


def main() -> None:
    """One side, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"train on {QUICK_ROWS} rows only")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with prepared/ and pretrained/")
    parser.add_argument("--side", choices=("ours", "rival"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = QUICK_ROWS if arguments.quick else None
    if arguments.side == "ours":
        print(json.dumps(ours(arguments.data, rows, arguments.seed)))
    elif arguments.side == "rival":
        print(json.dumps(rival(arguments.data, rows, arguments.seed, arguments.epochs)))
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
