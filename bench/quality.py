"""Test figures of the default experiment over three seeds, trained by the pipeline's own stages.

The data, the splits and the pipeline stay the same; only `seed` changes. The TF-IDF and majority
baselines stand beside. Run `make repro` first.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (1, 2, 3)
FIGURES = ("weighted_f1", "macro_f1", "accuracy")


def run_seed(seed: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Train and evaluate with one seed in a throw-away copy: figures and baselines."""
    name = f"bench-seed-{seed}-{int(time.time())}"
    command = [
        str(Path(sys.executable).parent / "dvc"),
        "exp",
        "run",
        "--temp",
        "--name",
        name,
        "-S",
        f"seed={seed}",
        "evaluate",
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    metrics = read_at(name, "data/evaluation/metrics.json")
    test = {figure: metrics["test"][figure]["value"] for figure in FIGURES}
    baselines = {
        baseline: {figure: values[figure]["value"] for figure in FIGURES}
        for baseline, values in metrics["baselines"].items()
    }
    return test, baselines


def read_at(experiment: str, path: str) -> Any:
    """A JSON output as a DVC experiment left it."""
    import dvc.api

    return json.loads(dvc.api.read(path, repo=str(ROOT), rev=experiment))


def main() -> None:
    """Print the table."""
    results = [run_seed(seed) for seed in SEEDS]
    print("| model | " + " | ".join(FIGURES) + " |")
    print("|---|" + "---:|" * len(FIGURES))
    for seed, (test, _) in zip(SEEDS, results, strict=True):
        print(f"| fine-tuned, seed {seed} | " + " | ".join(f"{test[figure]:.4f}" for figure in FIGURES) + " |")
    means = [statistics.mean(test[figure] for test, _ in results) for figure in FIGURES]
    print("| **fine-tuned, mean of 3** | " + " | ".join(f"**{mean:.4f}**" for mean in means) + " |")
    for baseline, values in results[0][1].items():
        print(f"| {baseline} | " + " | ".join(f"{values[figure]:.4f}" for figure in FIGURES) + " |")


if __name__ == "__main__":
    main()
