"""`textmill tune` against random search at equal training time, on two small experiments; prints Markdown.

Both sides search the same space with the same seeds. Random search trains each trial to its end. `tune` (TPE, median
pruner) gets as many seconds of training as random search took. The best value of the validations counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

REVIEWS: dict[str, Any] = {
    "space": {
        "train.optimizer.learning_rate": {"low": 1e-5, "high": 0.3, "log": True},
        "train.optimizer.weight_decay": {"low": 1e-4, "high": 1.0, "log": True},
        "train.optimizer.warmup": {"low": 0.0, "high": 0.5},
        "train.batches.tokens": {"choices": [64, 128, 256, 512]},
        "train.optimizer.layer_decay": {"low": 0.3, "high": 1.0},
    },
    "metric": "loss",
    "mode": "min",
}
PLAYS: dict[str, Any] = {
    "space": {
        "train.optimizer.learning_rate": {"low": 1e-4, "high": 0.3, "log": True},
        "train.optimizer.matrix_learning_rate": {"low": 1e-4, "high": 0.3, "log": True},
        "train.optimizer.weight_decay": {"low": 1e-3, "high": 1.0, "log": True},
        "train.optimizer.decay": {"low": 0.1, "high": 1.0},
        "train.batches.tokens": {"choices": [128, 256, 512, 1024]},
    },
    "metric": "bits_per_byte",
    "mode": "min",
}
EXPERIMENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reviews": (REVIEWS, {"experiment": "tiny", "train": {"max_epochs": 1, "validations_per_epoch": 6}}),
    "plays": (PLAYS, {"experiment": "plays"}),
}
PLAYS_DATA = """# @package _global_
defaults:
  - override /data: file
  - override /task: language_modelling
  - override /model: shakespeare_dense
  - override /train: language_model
  - override /evaluate: language_model
name: plays
task: {sequence_length: 32, prompts: [ROMEO], sample_tokens: 1}
model: {n_layers: 1, n_heads: 2, width: 32, max_length: 32}
fetch: {source: {_target_: textmill.fetching.sources.files.FilesSource, files: {all: data/own/plays.txt}}}
prepare:
  read: {format: text, columns: {text: text}}
  tokenizer: {kind: character}
  splits: {method: shuffled, by: position, validation: 0.2, test: 0.2}
  cleaning: {max_characters: 10000000}
  duplicates: {exact: false, near: false}
  max_length: 32
train: {max_epochs: 2, validations_per_epoch: 3}
runtime: {plan: false}
"""


def build(root: Path) -> None:
    """Lay the project of the tests, with a second experiment on made-up plays."""
    from support.project import build_project
    from support.tiny_text import play

    build_project(root, ROOT)
    (root / "data/own/plays.txt").write_text("\n".join(play(seed) for seed in range(12)))
    (root / "conf/experiment/plays.yaml").write_text(PLAYS_DATA)


def search(root: Path, name: str, sampler: str, seed: int, **limit: Any) -> dict[str, Any]:
    """Run one study, or continue it; return its best value, its seconds and its number of trials."""
    from textmill.config.layout import Layout
    from textmill.selection.tune import Budget, tune

    space, changes = EXPERIMENTS[name]
    pruner = "none" if sampler == "random" else "median"
    content = space | {"sampler": sampler, "pruner": pruner, "seed": seed, "startup": 4}
    (root / "conf/tune/bench.yaml").write_text(yaml.safe_dump(content))
    done = tune(changes, "bench", Budget(**limit), Layout(root), name=f"{name}-{sampler}-{seed}", storage=None)
    assert done.best is not None
    seconds = sum(float(trial.user_attrs.get("seconds", 0.0)) for trial in done.trials)
    pruned = sum(trial.state.name == "PRUNED" for trial in done.trials)
    return {"best": done.best.value, "seconds": seconds, "trials": len(done.trials), "pruned": pruned}


def interval(gains: list[float]) -> tuple[float, float]:
    """95 % interval of the mean by the bootstrap over seeds."""
    draw = np.random.default_rng(0)
    means = [np.mean(draw.choice(gains, len(gains))) for _ in range(10_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Run all pairs of studies, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=8, help="of random search")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--cache", type=Path, help="folder that keeps finished pairs, to measure in pieces")
    options = parser.parse_args()
    cache = options.cache or Path(tempfile.mkdtemp())
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    logging.basicConfig(level=logging.WARNING)
    root = cache / "project"
    if not (root / "conf/experiment/plays.yaml").is_file():
        shutil.rmtree(root, ignore_errors=True)
        build(root)
    pairs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in EXPERIMENTS}
    for seed in range(1, options.seeds + 1):
        for name in EXPERIMENTS:
            kept = cache / f"{name}-{seed}.json"
            if not kept.is_file():
                random = search(root, name, "random", seed, trials=options.trials)
                kept.write_text(json.dumps([random, search(root, name, "tpe", seed, seconds=random["seconds"])]))
            pairs[name].append(json.loads(kept.read_text()))
    rows = []
    for name, found in pairs.items():
        gains = [random["best"] - tuned["best"] for random, tuned in found]
        counts = [tuned["trials"] for _, tuned in found]
        pruned = [tuned["pruned"] for _, tuned in found]
        budgets = [tuned["seconds"] / random["seconds"] for random, tuned in found]
        low, high = interval(gains)
        unit = EXPERIMENTS[name][0]["metric"].replace("_", " ")
        rows.append(
            f"| {name} | {unit} | {np.mean(gains):+.4f} | {low:+.4f} to {high:+.4f} | {options.trials} | "
            f"{np.mean(counts):.1f} | {np.mean(pruned):.1f} | {np.mean(budgets):.2f} |"
        )
    print(
        "Best validation of `textmill tune` (TPE, median pruner) against random search without pruning, both on one "
        f"thread in turns, {options.seeds} seeds. Lead: random minus tune, so above 0 `tune` is better. The last "
        "trial of `tune` may exceed the time; the last column is its time as a share of random search's.\n"
    )
    print(
        "| experiment | metric | mean lead | 95 % interval over seeds | random trials | tune trials | pruned | time |"
    )
    print("|---|---|---:|---|---:|---:|---:|---:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
