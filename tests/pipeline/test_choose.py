"""`textmill choose` as it is typed, in a project of its own: real trainings, a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.project import Project
from support.tiny_llama import write_tiny_llama

pytestmark = pytest.mark.slow

CANDIDATE = """title: a tiny BERT
params:
  model: tiny
  prepare: {tokenizer: {kind: pretrained}}
  train: {max_epochs: 4, optimizer: {learning_rate: 0.01}, batches: {tokens: 128}}
"""
ASKED = ("textmill", "choose", "--data", "data/own/reviews.csv", "--task", "text_classification", "--only", "tiny")


@pytest.fixture
def asked(project: Project) -> Project:
    """The tiny project with its BERT among the candidates."""
    (project.root / "conf/candidate/tiny.yaml").write_text(CANDIDATE)
    return project


def test_advice_comes_with_the_lines_that_adopt_it(asked: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in (asked.root / "data").rglob("*")}
    done = asked.run(*ASKED, "--only", "tfidf_logistic_regression", "--json")
    found = json.loads(done.stdout)
    by_name = {candidate["name"]: candidate for candidate in found["candidates"]}
    assert set(by_name) == {"tiny", "tfidf_logistic_regression"}
    assert found["advice"] in by_name
    assert by_name["tfidf_logistic_regression"]["share"] == 1
    shares = [rung["share"] for rung in by_name["tiny"]["rungs"]]
    assert shares == sorted(set(shares))
    assert all(candidate["latency_ms"] > 0 and candidate["size_mb"] > 0 for candidate in by_name.values())
    assert found["adopt"] == "tiny"
    assert {path: path.stat().st_mtime_ns for path in (asked.root / "data").rglob("*")} == before
    assert not list((asked.root / ".dvc/tmp/textmill/choose").iterdir())
    _check_runs(asked.root)

    (asked.root / "params.yaml").write_text(yaml.safe_dump(found["params"]))
    composed = asked.run("python", "-m", "textmill.stages.compose")
    assert "done" in composed.stderr
    resolved = yaml.safe_load((asked.root / "data/resolved.yaml").read_text())
    assert resolved["train"]["optimizer"]["learning_rate"] == 0.01
    assert resolved["register"]["name"] == "reviews"
    assert not resolved["gate"]["floors"], "of the film reviews"


CHAT = """title: a tiny chat model
tasks: []
chat: {pretrained: ./tiny_llama, rows: 20, examples: 1, prompt: "name {text}"}
"""


def test_choose_asks_a_chat_model_on_a_part_of_the_rows(asked: Project) -> None:
    write_tiny_llama(asked.root / "tiny_llama")
    (asked.root / "conf/candidate/chat.yaml").write_text(CHAT)
    (asked.root / "conf/candidate/long.yaml").write_text(CHAT.replace("examples: 1", "examples: 9"))
    others = ("tfidf_logistic_regression", "chat", "long", "assistant_tuned")
    done = asked.run(*ASKED, *(word for name in others for word in ("--only", name)), "--json")
    found = json.loads(done.stdout)
    by_name = {candidate["name"]: candidate for candidate in found["candidates"]}
    chat = by_name["chat"]
    assert chat["share"] == 1 and chat["training_seconds"] == 0
    assert chat["latency_ms"] > 0 and chat["size_mb"] > 0
    assert chat["rungs"][0]["samples"] == 1, "the example"
    assert found["advice"] != "chat" and "behind_the_best" in chat
    assert found["adopt"] == "tiny", "the pipeline does not train a chat model"
    assert "no exported chat model in data/own/assistant" in by_name["assistant_tuned"]["excluded"]
    assert "the prompt has" in by_name["long"]["excluded"]


def _check_runs(root: Path) -> None:
    """One run above, one below it for each candidate, with a figure for each rung."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("choose")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("choose-reviews")
    assert set(runs) == {"tiny", "tfidf_logistic_regression"}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs.values())
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    assert len(client.get_metric_history(runs["tiny"].info.run_id, "rung/weighted_f1")) > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-size", "1kB"), r"no candidate is left (tiny: size "),
        (("--budget", "1s"), "--budget 1s: too small"),
        (("--only", "minilmm"), "Did you mean 'minilm'"),
    ],
)
def test_what_cannot_be_answered_is_one_line(asked: Project, options: tuple[str, ...], said: str) -> None:
    done = asked.run(*ASKED, *options, check=False)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("textmill: error")]
    assert said in line
    assert "Traceback" not in done.stderr
    assert not done.stdout
