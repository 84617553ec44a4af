"""Labels flipped on purpose: how many are ranked first, and what retraining without the suspected rows gains.

`python -m bench.wrong_labels` flips 5 % of the training labels of SST-2 (../shared/data/sst2) and of the film reviews.
Validation and test rows keep their labels. MiniLM is trained on the flipped labels, without the rows of
`label_issues.csv` (in its order, at most 10 % of the rows), and on the clean labels. `--only sst2 --seeds 1` does less.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.applications import SHARED, shown
from bench.semantic import run

Rows = list[tuple[str, str]]
SPLITS = ("train", "validation", "test")
FLIPPED, MOST_REMOVED = 0.05, 0.1


def corpus(name: str, folder: Path) -> dict[str, Rows]:
    """Return the texts and labels of each split."""
    if name == "sst2":
        files = dict(zip(SPLITS, ("train", "dev", "test"), strict=True))
        lines = {split: (SHARED / f"sst2/{file}.tsv").read_text().splitlines() for split, file in files.items()}
        pairs = {split: [line.split("\t") for line in those] for split, those in lines.items()}
        return {split: [(pair[0], pair[1]) for pair in those] for split, those in pairs.items()}
    from textmill.data.prepared import Prepared

    prepared = Prepared(run(name, folder, stages=("compose", "fetch", "prepare")) / "data/prepared")
    frames = {split: prepared.frame(split, ["text", "label"]) for split in SPLITS}
    return {split: list(frame.itertuples(index=False, name=None)) for split, frame in frames.items()}


def flip(rows: Rows, seed: int) -> tuple[Rows, set[int]]:
    """Return rows of which `FLIPPED` have another label, and the positions of these."""
    chooser = np.random.default_rng(seed)
    names = sorted({label for _, label in rows})
    wrong = {int(row) for row in chooser.choice(len(rows), int(len(rows) * FLIPPED), replace=False)}
    others = {row: str(chooser.choice([name for name in names if name != rows[row][1]])) for row in sorted(wrong)}
    return [(text, others.get(row, label)) for row, (text, label) in enumerate(rows)], wrong


def train(rows: dict[str, Rows], folder: Path, seed: int) -> Path:
    """Train MiniLM without R-Drop and return the project."""
    folder.mkdir()
    for split, those in rows.items():
        lines = "".join(f"{' '.join(text.split())}\t{label}\n" for text, label in those)
        (folder / f"{split}.tsv").write_text(lines, encoding="utf-8")
    files = ",".join(f"{split}:{folder}/{split}.tsv" for split in SPLITS)
    changes = ("data=tsv", f"fetch.source.files={{{files}}}", "task.r_drop=0.0", f"seed={seed}")
    return run("movie_reviews", folder / "project", *changes)


def suspected(project: Path) -> list[int]:
    """Return the positions of the training rows whose label is suspect, the most suspect first."""
    import pandas as pd

    ids = pd.read_csv(project / "data/evaluation/label_issues.csv")["id"]
    return [int(identity.rpartition(":")[2]) - 1 for identity in ids]


def metrics_of(project: Path) -> Any:
    """Return the metrics of the project's task."""
    import yaml

    from textmill.data.prepared import Prepared
    from textmill.evaluation.evaluator import evaluator_of
    from textmill.tasks.base import Task

    config = yaml.safe_load((project / "data/resolved.yaml").read_text())["evaluate"]
    return evaluator_of(Task.build(config["task"])).metrics(Prepared(project / "data/prepared").state)


def measure(name: str, seed: int, folder: Path) -> None:
    """Print one corpus's row for one seed."""
    import pandas as pd

    from textmill.metrics.bootstrap import Bootstrap, intervals, paired_differences

    clean = corpus(name, folder / "corpus")
    given, wrong = flip(clean["train"], seed)
    first = train({**clean, "train": given}, folder / "flipped", seed)
    ranked = suspected(first)
    tenth = len(wrong & set(ranked[: len(given) // 10])) / len(wrong)
    removed = set(ranked[: int(len(given) * MOST_REMOVED)])
    left = [row for position, row in enumerate(given) if position not in removed]
    projects = [first, train({**clean, "train": left}, folder / "left", seed), train(clean, folder / "clean", seed)]
    flipped, without, right = (pd.read_parquet(project / "data/evaluation/predictions.parquet") for project in projects)
    metrics, bootstrap = metrics_of(first), Bootstrap(1000)
    scores = [intervals(rows, metrics, bootstrap)["weighted_f1"] for rows in (flipped, without, right)]
    gain = paired_differences(without, flipped, metrics, bootstrap, ["label"])["weighted_f1"]
    cells = [f"{tenth:.1%}", f"{len(removed)} ({len(removed & wrong)} flipped)"]
    cells += [f"{score.value:.4f}" for score in scores] + [shown(gain.as_dict(), 4, "+")]
    print(f"| {name} | {seed} | {' | '.join(cells)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="sst2,movie_reviews", help="corpora, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    chosen = parser.parse_args(arguments)
    print("| corpus | seed | flipped rows in the first tenth | removed | flipped | without | clean | gain |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in chosen.only.split(","):
        for seed in range(1, chosen.seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                measure(name, seed, Path(folder))
    print("\nWeighted F1 of the test split: trained on flipped labels, without the removed rows, on clean labels.")
    print("The gain is of `without` over `flipped`, with its 95 % paired bootstrap interval.")


if __name__ == "__main__":
    main()
