"""Processor seconds and F1 of the default experiment's training, with and without R-Drop, over three seeds.

Each training is the stage `train` in a process of its own, in a copy of the project; its processor seconds include
start and tracking. Options: `--recipe NAME=SETTINGS` adds one (settings separated by spaces), `--only NAME ...`
chooses, `--seeds 1 2 3`. Run `make repro` first, or name a folder with `prepared/` and `pretrained/` by `--data`.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.rare_labels import RARE

ROOT = Path(__file__).resolve().parent.parent
TODAY = "R-Drop"
RECIPES = {
    TODAY: "task.r_drop=2.0",
    "without R-Drop": "task.r_drop=0.0",
}
GOAL_F1, GOAL_SHARE = 0.84, 0.60
COPIED = ("conf", "dvc.yaml", "params.yaml", "constraints.txt")


def train(project: Path, settings: list[str]) -> float:
    """Run the stage `train`; return its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for name in ("data/trained", ".textmill"):
        shutil.rmtree(project / name, ignore_errors=True)
    command = [sys.executable, "-m", "textmill.stages.train", *settings]
    subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def score(project: Path, settings: list[str]) -> tuple[float, float, float]:
    """Return weighted and macro F1 and the F1 of the rare label on the test split."""
    from sklearn.metrics import f1_score

    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.data.prepared import Prepared
    from textmill.evaluation.evaluate import load_for_answers
    from textmill.models.base import Model
    from textmill.tasks.base import Task
    from textmill.training.inference import predict_table

    layout = Layout(project)
    config, prepared = compose(layout, settings).train, Prepared(layout.prepared)
    task = Task.build(config.task)
    network = load_for_answers(task, Model.build(config.model), prepared, layout.trained, "cpu")
    test = prepared.split("test")
    predicted = predict_table(network, task, test)["logits"].argmax(axis=1)
    actual, rare = test["label_id"].to_numpy(), prepared.state["labels"].index(RARE)
    weighted, macro = (f1_score(actual, predicted, average=average) for average in ("weighted", "macro"))
    return weighted, macro, f1_score(actual, predicted, labels=[rare], average="macro", zero_division=0)


def main() -> None:
    """Print a line for each training, then the table of means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME=SETTINGS")
    parser.add_argument("--only", nargs="+")
    arguments = parser.parse_args()
    recipes = RECIPES | dict(entry.split("=", 1) for entry in arguments.recipe)
    recipes = {name: recipes[name] for name in arguments.only or recipes}
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in recipes}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        project = Path(folder)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, project / name)
        (project / "data").mkdir()
        for name in ("prepared", "pretrained"):
            shutil.copytree(arguments.data / name, project / "data" / name)
        for seed in arguments.seeds:  # the recipes take turns
            for name, recipe in recipes.items():
                settings = ["experiment=movie_reviews", f"seed={seed}", *recipe.split()]
                figures = (train(project, settings), *score(project, settings))
                found[name].append(figures)
                print(name, "seed", seed, *(f"{figure:.4f}" for figure in figures), file=sys.stderr, flush=True)
    names = list(recipes)
    first = statistics.mean(figures[0] for figures in found[names[0]])
    print(f"| training | processor seconds | of the first | weighted F1 | macro F1 | F1 of *{RARE}* |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in names:
        seconds, weighted, macro, rare = (statistics.mean(values) for values in zip(*found[name], strict=True))
        print(f"| {name} | {seconds:.0f} | {seconds / first:.0%} | {weighted:.4f} | {macro:.4f} | {rare:.3f} |")
    seeds = ", ".join(map(str, arguments.seeds))
    print(f"\nMeans of seeds {seeds} (goal: at most {GOAL_SHARE:.0%} at a weighted F1 of at least {GOAL_F1}).")


if __name__ == "__main__":
    main()
