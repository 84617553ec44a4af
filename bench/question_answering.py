"""Question answering beside both baselines, with intervals: the two experiments, each through its own stages.

Every experiment runs by `dvc exp run --temp`, so that the folder `data/` stays as it is. `squad2`
needs its file (see `conf/data/squad2.yaml`) and is left out, and said to be, where that is missing.
"""

from __future__ import annotations

from bench.applications import SHARED, run, shown

EXPERIMENTS = ("question_answering", "squad2")
FIGURES = ("f1", "exact_match", "f1/with answer", "f1/without answer")
SQUAD = SHARED / "squad2/dev-v2.0.json"


def rows(experiment: str) -> list[str]:
    """The table's rows of one experiment: ours, then each baseline."""
    measured = run(experiment)
    found = measured.figures
    models = {f"MiniLM, {measured.cpu_minutes:.0f} CPU-minutes": found["test"]}
    models |= {name.replace("_", " "): figures for name, figures in found["baselines"].items()}
    return [
        f"| `{experiment}` | {name} | " + " | ".join(_cell(figures.get(figure)) for figure in FIGURES) + " |"
        for name, figures in models.items()
    ]


def _cell(figure: dict[str, float] | None) -> str:
    return shown(figure, 3) if figure else "-"


def main() -> None:
    """Print the table."""
    print("| experiment | model | F1 | exact match | F1, answerable | F1, unanswerable |")
    print("|---|---|---:|---:|---:|---:|")
    for experiment in EXPERIMENTS:
        if experiment == "squad2" and not SQUAD.is_file():
            print(f"| `squad2` | not measured: {SQUAD} is missing | | | | |")
            continue
        print("\n".join(rows(experiment)))
    print("\nMetrics of the test split with 95 % bootstrap intervals. Test packages and articles are not in training.")


if __name__ == "__main__":
    main()
