"""Plans of `train` compared with what it took: time and peak memory of five experiments of different kinds.

Each experiment is prepared and trained in a fresh folder, without a remembered speed, and one after the other.
`--only=NAME` measures one of them; `--quick` ends each after a tenth of its steps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS: dict[str, tuple[str, list[str]]] = {
    "classifier": ("movie_reviews", ["train.max_epochs=1"]),
    "dense language model": (
        "shakespeare",
        ["train.max_epochs=1", "model.feed_forward=dense", "model.router=null"],
    ),
    "mixture of experts": ("shakespeare", ["train.max_epochs=1"]),
    "encoder-decoder": ("translation", ["train.max_epochs=8"]),
    "long context": ("shakespeare", ["train.max_epochs=1", "model.max_length=1024"]),
}


def train(experiment: str, overrides: list[str], home: Path) -> dict[str, float]:
    """Prepare and train an experiment in an empty folder; return the metrics of the training."""
    for name in ("dvc.yaml", "params.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, home)
    shutil.copytree(ROOT / "conf", home / "conf")
    shutil.copytree(ROOT / "data" / "own", home / "data" / "own")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "XDG_CACHE_HOME": str(home / "cache"),
        "TEXTMILL_HOME": str(home),
    }
    for stage in ("compose", "fetch", "prepare", "train"):
        chosen = [f"experiment={experiment}", *overrides] if stage == "compose" else []
        command = [sys.executable, "-m", f"textmill.stages.{stage}", *chosen]
        subprocess.run(command, cwd=home, env=environment, stdout=sys.stderr, check=True)
    metrics: dict[str, float] = json.loads((home / "data/trained/metrics.json").read_text())
    return metrics


def main(arguments: list[str]) -> None:
    """Measure, and print the table."""
    only = {argument.partition("=")[2] for argument in arguments if argument.startswith("--only=")}
    quick = ["train.batches.per_epoch=40"] if "--quick" in arguments else []
    print("| training | steps | seconds, planned | seconds | error | peak MB, planned | peak MB | error |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, (experiment, overrides) in EXPERIMENTS.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = train(experiment, [*overrides, *quick], Path(folder))
        cells = [
            f"{found['steps']:,.0f}",
            *(f"{found[each]:,.0f}" for each in ("plan_seconds", "plan_actual_seconds")),
            f"{found['plan_seconds_error']:+.0%}",
            *(f"{found[each]:,.0f}" for each in ("plan_peak_memory_mb", "plan_actual_peak_memory_mb")),
            f"{found['plan_memory_error']:+.0%}",
        ]
        print(f"| {name} (`{' '.join([experiment, *overrides, *quick])}`) | {' | '.join(cells)} |", flush=True)
    print(
        "\nGoal: 20 % of the time, 15 % of the peak memory. The memory of kernels and fragments was set on an AMD EPYC."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
