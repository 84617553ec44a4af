"""Question answering beside both baselines, with intervals: the two experiments, each through its own stages.

Every experiment runs by `dvc exp run --temp`, so that the folder `data/` stays as it is. `squad2`
needs its file (see `conf/data/squad2.yaml`) and is left out, and said to be, where that is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ("question_answering", "squad2")
FIGURES = ("f1", "exact_match", "f1/with answer", "f1/without answer")
SQUAD = "../shared/data/squad2/dev-v2.0.json"


def measured(experiment: str) -> tuple[dict[str, Any], float]:
    """`figures.json` of an experiment, and the minutes that all stages up to the evaluation took."""
    import dvc.api

    name = f"bench-{experiment.replace('_', '-')}-{int(time.time())}"
    command = [str(Path(sys.executable).parent / "dvc"), "exp", "run", "--temp", "--name", name]
    started = time.perf_counter()
    subprocess.run([*command, "-S", f"experiment={experiment}", "evaluate"], cwd=ROOT, check=True, stdout=sys.stderr)
    minutes = (time.perf_counter() - started) / 60
    return json.loads(dvc.api.read("data/evaluation/figures.json", repo=str(ROOT), rev=name)), minutes


def rows(experiment: str) -> list[str]:
    """The table's rows of one experiment: ours, then each baseline."""
    found, minutes = measured(experiment)
    models = {f"MiniLM ({minutes:.0f} min)": found["test"]}
    models |= {name.replace("_", " "): figures for name, figures in found["baselines"].items()}
    return [
        f"| `{experiment}` | {name} | " + " | ".join(_shown(figures.get(figure)) for figure in FIGURES) + " |"
        for name, figures in models.items()
    ]


def _shown(figure: dict[str, float] | None) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" if figure else "-"


def main() -> None:
    """Print the table."""
    print("| experiment | model | F1 | exact match | F1, answerable | F1, unanswerable |")
    print("|---|---|---:|---:|---:|---:|")
    for experiment in EXPERIMENTS:
        if experiment == "squad2" and not (ROOT / SQUAD).is_file():
            print(f"| `squad2` | not measured: {SQUAD} is missing | | | | |")
            continue
        print("\n".join(rows(experiment)))
    print("\nFigures of the test split with 95 % bootstrap intervals. Test packages and articles are not in training.")


if __name__ == "__main__":
    main()
