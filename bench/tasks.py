"""Several labels a text, numbers, entities and re-ranking beside their baselines, each through its own stages.

`python -m bench.tasks` runs all in throw-away projects, up to the evaluation. `--only goemotions,wnut17` names some.
`goemotions` and `wnut17` need their files in ../shared/data (see `conf/data/`) and are left out where they are missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.applications import SHARED, children_seconds, shown
from bench.semantic import STAGES, run


@dataclass(frozen=True)
class Row:
    """An experiment, its settings, what the table calls it, and its metrics."""

    experiment: str
    metrics: dict[str, str]
    data: str | None = None
    changes: tuple[str, ...] = ()


ENCODER = "re_ranking after the encoder"
LABELS = {"macro F1": "macro_f1", "micro F1": "micro_f1", "exact": "exact_match"}
NUMBERS = {"Spearman": "spearman", "mean error": "mean_absolute_error", "coverage": "interval_coverage"}
ENTITIES = {"F1": "f1", "precision": "precision", "recall": "recall"}
RANKS = {"reciprocal rank": "mean_reciprocal_rank", "recall at 1": "recall_at_1"}
ROWS = {
    "multi_label_classification": Row("multi_label_classification", LABELS),
    "goemotions": Row("goemotions", LABELS, "goemotions"),
    "text_regression": Row("text_regression", NUMBERS),
    "text_regression of one width": Row("text_regression", NUMBERS, None, ("task.heteroscedastic=false",)),
    "token_classification": Row("token_classification", ENTITIES),
    "wnut17": Row("wnut17", ENTITIES, "wnut17"),
    "re_ranking": Row("re_ranking", RANKS),
    ENCODER: Row("re_ranking", RANKS),
}


def measure(name: str, folder: Path) -> None:
    """Run one experiment and print its rows of the table: ours, then each baseline and the paired difference."""
    row = ROWS[name]
    changes = [*row.changes]
    before, began = children_seconds(), time.monotonic()
    if name == ENCODER:
        (folder / "search").mkdir()
        search = run("semantic_search", folder / "search", stages=(*STAGES, "export"))
        shutil.move(search / "data/exported/model", folder / "encoder")
        changes.append(f"+fetch.source.encoder={folder / 'encoder'}")
    (folder / "project").mkdir()
    (folder / "shared").symlink_to(SHARED.parent)
    project = run(row.experiment, folder / "project", *changes)
    figures: dict[str, Any] = json.loads((project / "data/evaluation/figures.json").read_text())
    minutes = (children_seconds() - before) / 60
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    table = {f"**MiniLM, {minutes:.0f} CPU-minutes**": figures["test"]}
    for baseline, found in figures["baselines"].items():
        title = baseline.replace("_", " ")
        table |= {title: found, f"difference from {title}": figures["difference"][baseline]}
    for model, found in table.items():
        cells = (f"{title} {shown(found[key], 3)}" if key in found else "" for title, key in row.metrics.items())
        print(f"| {name} | {model} | " + " | ".join([*cells, *[""] * (3 - len(row.metrics))]) + " |")
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(ROWS), help="rows of the table, separated by commas")
    print("| experiment | model | | | |\n|---|---|---|---|---|")
    for name in parser.parse_args().only.split(","):
        if (data := ROWS[name].data) and not (SHARED / data).is_dir():
            print(f"| {name} | not measured: {SHARED / data} is missing | | | |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder))
    print("\nTest splits, with 95 % bootstrap intervals; those of a difference are of paired draws.")
    print("The intervals of numbers should contain 90 % (coverage). `first stage` is the order of the search alone: by")
    print(f"BM25, or the encoder of `semantic_search` ({ENCODER}), whose training is counted.")


if __name__ == "__main__":
    main()
