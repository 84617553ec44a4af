"""What the benchmarks of the applications share: an experiment through its own stages, and its rows of a table."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared/data"


@dataclass(frozen=True)
class Measured:
    """`figures.json` of an experiment, and the CPU-minutes of all stages up to the evaluation."""

    figures: dict[str, Any]
    cpu_minutes: float


def run(experiment: str, *changes: str) -> Measured:
    """Run an experiment by `dvc exp run --temp`, so that the folder `data/` stays as it is."""
    import dvc.api

    name = f"bench-{experiment.replace('_', '-')}-{int(time.time())}"
    command = [str(Path(sys.executable).parent / "dvc"), "exp", "run", "--temp", "--name", name]
    for change in (f"experiment={experiment}", *changes):
        command += ["-S", change]
    before = children_seconds()
    subprocess.run([*command, "evaluate"], cwd=ROOT, check=True, stdout=sys.stderr)
    seconds = children_seconds() - before
    figures = json.loads(dvc.api.read("data/evaluation/figures.json", repo=str(ROOT), rev=name))
    return Measured(figures, seconds / 60)


def children_seconds() -> float:
    """Processor seconds of all child processes that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows(label: str, ours: str, measured: Measured, names: Sequence[str]) -> list[str]:
    """Our figures with their intervals, then each baseline's and by how much ours differ."""
    found = measured.figures
    table = [(f"{ours}, {measured.cpu_minutes:.0f} CPU-minutes", found["test"])]
    for baseline, figures in found["baselines"].items():
        table.append((baseline.replace("_", " "), figures))
        table.append((f"difference from {baseline.replace('_', ' ')}", found["difference"][baseline]))
    return [
        f"| {label} | {name} | " + " | ".join(shown(figures[figure], 1) for figure in names) + " |"
        for name, figures in table
    ]


def shown(figure: dict[str, float], digits: int, sign: str = "") -> str:
    """A figure with its 95 % interval; `sign` is `+` for a difference."""
    value, low, high = (f"{figure[key]:{sign}.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
