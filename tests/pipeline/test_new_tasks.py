"""Every task whose target is not one label, from its rows to a promoted version that serves, compares and drifts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.http_client import ask
from support.project import Project, build_project
from support.serving import served
from support.tiny_tasks import KINDS, lay_task, task_name

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
def unbuilt(tmp_path: Path, repository_root: Path) -> Project:
    """The tiny project before its first stage."""
    return build_project(tmp_path / "project", repository_root)


def _check_answer(kind: str, answer: dict[str, Any]) -> None:
    """The answer to a text of praise."""
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
def test_new_task_whole_pipeline_is_measured_served_promoted_and_compared(unbuilt: Project, kind: str) -> None:
    file = lay_task(unbuilt, kind)
    unbuilt.run("dvc", "repro")
    metrics = json.loads((unbuilt.root / "data/evaluation/metrics.json").read_text())
    main, words, simple = MAIN[kind]
    assert {words, simple} <= set(metrics["baselines"])
    assert metrics["test"][main]["value"] > metrics["baselines"][simple][main]["value"] or simple == "lexicon"
    assert metrics["test"][main]["value"] > 0.6, metrics["test"]
    assert (unbuilt.root / "data/evaluation/report.html").is_file()

    example = EXAMPLES.get(kind, PRAISE)
    model = unbuilt.root / "data/exported/model"
    answers = [load_predictor(model, precision).predict([example])[0] for precision in ("fp32", "int8")]
    for answer in answers:
        _check_answer(kind, answer)

    assert "promoted" in unbuilt.run("textmill", "promote").stdout.lower()
    asked = json.dumps(example) if isinstance(example, dict) else example
    [answer] = json.loads(unbuilt.run("textmill", "predict", asked, "--json").stdout)
    _check_answer(kind, answer)
    with served(unbuilt.root, unbuilt.root / "log", "own-" + kind.replace("_", "-")) as server:
        body = json.dumps({"inputs": [example]}).encode()
        response = ask(server.port, "POST", "/predict", body)
        assert response.status == 200, response.body
        _check_answer(kind, json.loads(response.body)["predictions"][0])

    same = unbuilt.run("textmill", "drift", "--reference", "champion", file, "--json", check=False)
    assert json.loads(same.stdout)["verdict"] == "no drift", same.stdout
    other = unbuilt.root / "data/own/other.jsonl"
    text = " ".join(["invoice refund parcel"] * 12)
    given = {"text_a": text, "text_b": text} if kind == "re_ranking" else {"text": text}
    other.write_text("".join(json.dumps(given) + "\n" for _ in range(60)))
    assert (
        json.loads(
            unbuilt.run("textmill", "drift", "--reference", "champion", str(other), "--json", check=False).stdout
        )["verdict"]
        == "drift"
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("multi_label_columns", "ordered")])
def test_new_task_choose_recommends_among_network_and_baseline(unbuilt: Project, kind: str) -> None:
    lay_task(unbuilt, kind)
    baseline = MAIN[kind][1]
    (unbuilt.root / "conf/candidate/tiny.yaml").write_text(
        "title: a tiny BERT\nparams:\n  model: tiny\n  prepare: {tokenizer: {kind: pretrained}}\n"
        "  train: {max_epochs: 4, optimizer: {learning_rate: 0.01}, batches: {tokens: 128}}\n"
    )
    (unbuilt.root / "conf/candidate/words.yaml").write_text(f"title: words\nbaseline: {baseline}\n")
    options = ("--data", f"own_{kind}", "--task", task_name(kind), "--experiment", f"own_{kind}")
    done = unbuilt.run("textmill", "choose", *options, "--only", "tiny", "--only", "words", "--json")
    found = json.loads(done.stdout)
    assert {candidate["name"] for candidate in found["candidates"]} == {"tiny", "words"}
    assert all(candidate["latency_ms"] > 0 for candidate in found["candidates"])
