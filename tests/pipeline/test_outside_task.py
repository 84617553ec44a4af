"""A task that Textmill does not know: two new files and one in conf/, through the whole pipeline and the gate."""

from __future__ import annotations

import csv
import json

import pytest
from support.project import NEGATIVE, POSITIVE, Project

pytestmark = pytest.mark.slow

TASK = '''
"""Rating: a number for a text."""

import numpy as np
import torch

from textmill.config.section import Section
from textmill.models.sequence_classifier import SequenceClassifier
from textmill.tasks.base import StepOutput, Task
from textmill.text.batches import pad_tensors
from textmill.text.rejected_rows import RejectedRow
from textmill.text.tokens import truncated


class Rating(Task):
    class Config(Section):
        highest: float = 10.0

    name = "rating"
    evaluator = "ratings.evaluator.RatingEvaluator"
    text_columns = ("text",)
    target_columns = ("stars",)
    main_metric = "mean_absolute_error"
    monitor = "validation/mean_absolute_error"
    monitor_mode = "min"

    def fit(self, frames):
        stars = [float(value) for frame in frames for value in frame["stars"]]
        return {"mean": float(np.mean(stars)), "spread": float(np.std(stars)) or 1.0}

    def check(self, frame, state):
        rows = enumerate(frame["stars"].tolist())
        return [RejectedRow(row, "stars", "is not a number") for row, value in rows if not str(value).isdigit()]

    def encode(self, frame, tokenizer, state, max_length):
        ids = [truncated(encoding, max_length) for encoding in tokenizer.encode_batch_fast(frame["text"].tolist())]
        columns = {"input_ids": ids, "length": [len(row) for row in ids]}
        return columns | ({"value": [float(stars) for stars in frame["stars"]]} if "stars" in frame else {})

    def build_network(self, model, pretrained, state):
        return SequenceClassifier(model.build_encoder(pretrained), 1)

    def collate(self, rows):
        input_ids, mask = pad_tensors(rows["input_ids"])
        batch = {"input_ids": input_ids, "attention_mask": mask}
        return batch | ({"value": torch.tensor(rows["value"]).float()} if "value" in rows else {})

    def loss(self, network, batch):
        outputs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        error = outputs["logits"].float().squeeze(-1) * 3 + 5 - batch["value"]
        return StepOutput(error.square().mean(), outputs)

    def validation_metrics(self, outputs, rows, state):
        return {"mean_absolute_error": float(np.abs(stars(outputs) - np.asarray(rows["value"])).mean())}

    def example_inputs(self):
        return [{"text": "wonderful film"}, {"text": "boring plot"}]

    def answers(self, outputs, rows, given, state):
        return [{"stars": value} for value in np.clip(stars(outputs), 0, self.config.highest).tolist()]


def stars(outputs):
    return outputs["logits"][:, 0].astype(float) * 3 + 5
'''

EVALUATOR = '''
"""Evaluate ratings."""

import numpy as np
import pandas as pd

from ratings.task import stars
from textmill.evaluation.evaluator import Evaluator, Report
from textmill.metrics.base import Metric, Section


class RatingEvaluator(Evaluator):
    def predictions(self, outputs, frame, state):
        return table(frame, stars(outputs))

    def metrics(self, state):
        def error(columns, index):
            return np.abs(columns["prediction"] - columns["stars"])[index].mean(axis=1)

        return [Metric("mean_absolute_error", error, higher_is_better=False)]

    def baselines(self, train, validation, state, options, seed):
        return {"mean": lambda frame: table(frame, np.full(len(frame), state["mean"]))}

    def report(self, predictions, state):
        worst = predictions.assign(error=(predictions["prediction"] - predictions["stars"]).abs())
        return Report([Section("Ratings", "How far the stars are off.")], worst.sort_values("error", ascending=False))


def table(frame, predicted):
    columns = {name: frame[name].to_numpy() for name in ("id", "text") if name in frame}
    return pd.DataFrame(columns | {"stars": frame["stars"].astype(float).to_numpy(), "prediction": predicted})
'''

DATA = """# @package _global_
fetch:
  source:
    _target_: textmill.fetching.sources.files.FilesSource
    files: {all: data/own/ratings.csv}
prepare:
  read:
    format: csv
    columns: {text: text, stars: stars}
  splits: {validation: 0.2, test: 0.3}
"""

EXPERIMENT = """# @package _global_
defaults:
  - override /data: ratings
  - override /task: rating
  - override /model: tiny
name: ratings
train:
  max_epochs: 4
  optimizer:
    learning_rate: 0.01
evaluate:
  resamples: 100
export:
  int8_tolerance: 5
"""


def lay_ratings(project: Project) -> None:
    """Two files of code, one in conf/, and what any experiment of one's own needs: data and an experiment file."""
    package = project.root / "src/ratings"
    package.mkdir()
    (package / "task.py").write_text(TASK)
    (package / "evaluator.py").write_text(EVALUATOR)
    (project.root / "conf/task/rating.yaml").write_text("_target_: ratings.task.Rating\n")
    (project.root / "conf/data/ratings.yaml").write_text(DATA)
    (project.root / "conf/experiment/ratings.yaml").write_text(EXPERIMENT)
    with (project.root / "data/own/reviews.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (project.root / "data/own/ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "stars"])
        for row in rows:
            words = row["text"].split()
            writer.writerow([row["text"], 5 + 2 * sum((word in POSITIVE) - (word in NEGATIVE) for word in words)])
    project.edit("params.yaml", "experiment: tiny", "experiment: ratings")


def test_outside_task_whole_pipeline_is_measured_served_and_promoted(project: Project) -> None:
    lay_ratings(project)
    path = {"PYTHONPATH": str(project.root / "src")}
    project.run("dvc", "repro", env=path)
    metrics = json.loads((project.root / "data/evaluation/metrics.json").read_text())
    error, baseline = metrics["test"]["mean_absolute_error"], metrics["baselines"]["mean"]["mean_absolute_error"]
    assert error["value"] < baseline["value"], "the network learned more than the mean"
    assert "How far the stars are off." in (project.root / "data/evaluation/report.html").read_text()

    done = project.run("textmill", "predict", "a wonderful superb film", "--json", env=path)
    [answer] = json.loads(done.stdout)
    assert answer["stars"] > 5
    assert project.run("textmill", "promote", env=path).returncode == 0
    assert "champion" in project.run("textmill", "history", env=path).stdout


def test_outside_task_changed_report_retrains_nothing(project: Project) -> None:
    lay_ratings(project)
    path = {"PYTHONPATH": str(project.root / "src")}
    project.run("dvc", "repro", "evaluate", env=path)
    project.edit("src/ratings/evaluator.py", "How far the stars are off.", "The mean distance in stars.")
    done = project.run("dvc", "repro", "evaluate", env=path)
    assert "Running stage 'evaluate'" in done.stdout and "Running stage 'train'" not in done.stdout
    assert "The mean distance in stars." in (project.root / "data/evaluation/report.html").read_text()
