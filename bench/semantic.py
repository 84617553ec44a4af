"""Similarity on STS-B and search among docstrings: the encoder before and after training, beside word statistics.

`python -m bench.semantic` runs both experiments from the start in throw-away projects, up to the
evaluation; STS-B must lie in data/own/stsb (see conf/data/stsb.yaml). `--stsb FOLDER` and `--search
FOLDER` measure projects in which they have run already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.applications import shown

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("compose", "fetch", "prepare", "train", "evaluate")
TABLES = {
    "stsb": ("STS-B, test split", ("spearman", "pearson")),
    "semantic_search": ("Search among docstrings, test split", ("recall_at_1", "mean_reciprocal_rank")),
}


def run(experiment: str, folder: Path, *changes: str, stages: Sequence[str] = STAGES) -> Path:
    """Run an experiment's stages in `folder`; downloads are taken from and left in the repository's cache."""
    shutil.copytree(ROOT / "conf", folder / "conf")  # makes the folder
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    environment = {**os.environ, "TEXTMILL_HOME": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    for stage in stages:
        command = [sys.executable, "-m", f"textmill.stages.{stage}"]
        command += [f"experiment={experiment}", *changes] if stage == "compose" else []
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
    return folder


def before_training(project: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The task, the predictions of the pretrained encoder for the test split, and its figures with intervals."""
    import yaml

    from textmill.data.prepared import Prepared
    from textmill.evaluation.evaluator import evaluator_of
    from textmill.metrics.bootstrap import Bootstrap, intervals
    from textmill.models.base import Model
    from textmill.tasks.abilities import examples_of
    from textmill.tasks.base import Task
    from textmill.training.inference import predict_table

    config = yaml.safe_load((project / "data/resolved.yaml").read_text())["evaluate"]
    task = Task.build(config["task"])
    prepared = Prepared(project / "data/prepared")
    test = prepared.split("test")
    network = task.build_network(Model.build(config["model"]), project / "data/pretrained", prepared.state).eval()
    outputs = predict_table(network, task, test)
    evaluator = evaluator_of(task)
    predictions = evaluator.predictions(outputs, examples_of(task, test).frame(), prepared.state)
    bootstrap = Bootstrap(config["resamples"], config["confidence"], config["seed"])
    found = intervals(predictions, evaluator.metrics(prepared.state), bootstrap)
    return task, predictions, {name: interval.as_dict() for name, interval in found.items()}


def print_table(experiment: str, project: Path) -> None:
    """One experiment's table, and the gain by training on the same draws."""
    import pandas as pd

    from textmill.evaluation.evaluator import evaluator_of
    from textmill.metrics.bootstrap import Bootstrap, paired_differences

    title, metrics = TABLES[experiment]
    figures = json.loads((project / "data/evaluation/figures.json").read_text())
    task, before, untrained = before_training(project)
    rows = {"MiniLM before training": untrained, "**MiniLM fine-tuned**": figures["test"]} | figures["baselines"]
    print(f"\n### {title}\n")
    print("| model | " + " | ".join(name.replace("_", " ") for name in metrics) + " |")
    print("|---|" + "---:|" * len(metrics))
    for name, found in rows.items():
        print(f"| {name.replace('_', ' ')} | " + " | ".join(shown(found[metric], 4) for metric in metrics) + " |")
    after = pd.read_parquet(project / "data/evaluation/predictions.parquet")
    gains = paired_differences(after, before, evaluator_of(task).metrics({}), Bootstrap(1000), task.target_columns)
    gain = shown(gains[task.main_metric].as_dict(), 4)
    print(f"\nGain by training in {task.main_metric.replace('_', ' ')}, on the same {len(after)} rows: {gain}.")
    for name, found in figures["difference"].items():
        print(f"Lead over {name.replace('_', ' ')}: {shown(found[task.main_metric], 4)}.")


def main() -> None:
    """Print both tables, or those of the projects given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stsb", type=Path, help="a project in which the experiment stsb was evaluated")
    parser.add_argument("--search", type=Path, help="a project in which semantic_search was evaluated")
    chosen = parser.parse_args()
    some = chosen.stsb or chosen.search
    for experiment, given in (("stsb", chosen.stsb), ("semantic_search", chosen.search)):
        if some and not given:
            continue
        if experiment == "stsb" and not given and not (ROOT / "data/own/stsb").is_dir():
            print("\nSTS-B was left out: data/own/stsb is not there.")
            continue
        with tempfile.TemporaryDirectory() as folder:
            print_table(experiment, given or run(experiment, Path(folder) / "project"))


if __name__ == "__main__":
    main()
