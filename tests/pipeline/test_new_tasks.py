"""Every task whose target is not one label, from its rows to a promoted version that serves, and to its drift."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.http_client import ask
from support.project import Project, build_project
from support.serving import served
from support.tiny_tasks import KINDS, lay_task, task_name
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config import resolved
from textmill.config.code import Code
from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.files import read_json
from textmill.predicting.loading import load_predictor

pytestmark = pytest.mark.slow

MAIN = {
    "multi_label_classification": ("macro_f1", "tfidf_one_against_rest", "label_shares"),
    "multi_label_columns": ("macro_f1", "tfidf_one_against_rest", "label_shares"),
    "regression": ("spearman", "tfidf_ridge", "mean"),
    "ordered": ("spearman", "tfidf_ridge", "mean"),
    "token_classification": ("f1", "lexicon", "lexicon"),
    "re_ranking": ("mean_reciprocal_rank", "tfidf", "first_stage"),
}
PRAISE = "  a superb \ufb01lm &amp; plot"
EXAMPLES: dict[str, Any] = {
    "multi_label_classification": "superb wonderful great",
    "multi_label_columns": "superb wonderful great",
    "re_ranking": {"text_a": "superb charming", "text_b": "plot superb film charming camera"},
}


@pytest.fixture
def project(tmp_path: Path, repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The tiny project before its first stage; it is the working directory."""
    made = build_project(tmp_path / "project", repository_root)
    monkeypatch.chdir(made.root)
    return made


def run_stages(layout: Layout) -> None:
    """Run every stage in this process, as `dvc repro` would in one process each."""
    from textmill.stages import evaluate, export, fetch, prepare, register, train

    config = compose(layout, [])
    code = Code(layout).stages(config.model_dump(mode="json", by_alias=True))
    resolved.write(layout.resolved, config)
    layout.code.write_text(yaml.safe_dump({stage: found.digest for stage, found in code.items()}))
    for name, stage in (("fetch", fetch), ("prepare", prepare), ("train", train), ("evaluate", evaluate)):
        stage.main(getattr(config, name), config.runtime, layout)
    export.main(config.export, config.runtime, layout)
    register.main(config.registration, config.runtime, layout)


def run(*arguments: str, status: int = 0) -> str:
    """Run a command in this process; return what it prints."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.stdout


def _check_answer(kind: str, answer: dict[str, Any]) -> None:
    """Check the answer to a text of praise."""
    if kind.startswith("multi_label"):
        assert "good" in answer["labels"]
        assert answer["probabilities"]["good"] > answer["probabilities"]["bad"]
    elif kind == "regression":
        assert -4 <= answer["low"] <= answer["value"] <= answer["high"] <= 4 and answer["value"] > 0
    elif kind == "ordered":
        assert answer["label"] in ("fair", "good", "superb")
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
    elif kind == "token_classification":
        [entity] = answer["entities"]
        assert (entity["text"], entity["label"]) == ("superb", "praise")
        assert PRAISE[entity["start"] : entity["end"]] == "superb"
    else:
        assert 0.5 < answer["score"] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_new_task_whole_pipeline_is_measured_served_promoted_and_compared(project: Project, kind: str) -> None:
    file = lay_task(project, kind)
    layout = Layout(project.root)
    run_stages(layout)
    metrics = read_json(layout.evaluation / "metrics.json")
    main, words, simple = MAIN[kind]
    value = metrics["test"][main]["value"]
    assert {words, simple} <= set(metrics["baselines"])
    assert value > 0.6 and (simple == "lexicon" or value > metrics["baselines"][simple][main]["value"]), metrics
    assert (layout.evaluation / "report.html").is_file()

    example = EXAMPLES.get(kind, PRAISE)
    for precision in ("fp32", "int8"):
        [answer] = load_predictor(layout.exported / "model", precision).predict([example])
        _check_answer(kind, answer)
    assert "is now the champion" in run("promote")
    asked = json.dumps(example) if isinstance(example, dict) else example
    _check_answer(kind, json.loads(run("predict", asked, "--json"))[0])
    with served(project.root, project.root / "log", str(layout.exported / "model")) as server:
        response = ask(server.port, "POST", "/predict", {"inputs": [example]})
        assert response.status == 200, response.body
        _check_answer(kind, response.json()["outputs"][0])

    assert json.loads(run("drift", "--reference", "champion", file, "--json"))["verdict"] == "no drift"
    other = project.root / "data/own/other.jsonl"
    text = " ".join(["invoice refund parcel"] * 12)
    given = {"text_a": text, "text_b": text} if kind == "re_ranking" else {"text": text}
    other.write_text("".join(json.dumps(given) + "\n" for _ in range(60)))
    found = json.loads(run("drift", "--reference", "champion", str(other), "--json", status=3))
    assert found["verdict"] == "drift"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("multi_label_columns", "ordered")])
def test_new_task_choose_recommends_among_network_and_baseline(project: Project, kind: str) -> None:
    lay_task(project, kind)
    (project.root / "conf/candidate/tiny.yaml").write_text(
        "title: a tiny BERT\nparams:\n  model: tiny\n  prepare: {tokenizer: {kind: pretrained}}\n"
        "  train: {max_epochs: 2, optimizer: {learning_rate: 0.01}, batches: {tokens: 512}}\n"
    )
    (project.root / "conf/candidate/words.yaml").write_text(f"title: words\nbaseline: {MAIN[kind][1]}\n")
    options = ("--data", f"own_{kind}", "--task", task_name(kind), "--experiment", f"own_{kind}")
    done = project.run("textmill", "choose", *options, "--only", "tiny", "--only", "words", "--json")
    found = json.loads(done.stdout)
    assert {candidate["name"] for candidate in found["candidates"]} == {"tiny", "words"}
    assert all(candidate["latency_ms"] > 0 for candidate in found["candidates"])
