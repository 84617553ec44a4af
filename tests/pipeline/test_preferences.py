"""Pairs of answers through every stage, to a promoted version that serves; the gate's budget for the divergence."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.http_client import ask
from support.project import build_project
from support.serving import served
from support.tiny_llama import write_tiny_llama
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config import resolved
from textmill.config.code import Code
from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.files import read_json

pytestmark = pytest.mark.slow

ANSWERS = {"who are you": "i am a mill", "name three colours": "red green blue", "thanks": "thanks you"}


def pair(number: int) -> dict[str, str]:
    draw = random.Random(number)
    question, other = draw.sample(list(ANSWERS), 2)
    prompt = " ".join([*draw.choices(["a", "blue", "mill", "green"], k=6), question, str(number)])
    return {"prompt": prompt, "chosen": ANSWERS[question], "rejected": ANSWERS[other]}


def run(*arguments: str, status: int = 0) -> str:
    """Run a command in this process; return what it prints."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == status, done.output
    return done.stdout


def run_stages(layout: Layout, *overrides: str) -> None:
    """Run every stage after `fetch` in this process, as `dvc repro` would in one process each."""
    from textmill.stages import evaluate, export, prepare, register, train

    config = compose(layout, list(overrides))
    code = Code(layout).stages(config.model_dump(mode="json", by_alias=True))
    resolved.write(layout.resolved, config)
    layout.code.write_text(yaml.safe_dump({stage: found.digest for stage, found in code.items()}))
    for name, stage in (("prepare", prepare), ("train", train), ("evaluate", evaluate)):
        stage.main(getattr(config, name), config.runtime, layout)
    export.main(config.export, config.runtime, layout)
    register.main(config.registration, config.runtime, layout)


def test_preferences_whole_pipeline_is_measured_gated_promoted_and_served(
    tmp_path: Path, repository_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = build_project(tmp_path / "project", repository_root)
    monkeypatch.chdir(project.root)
    layout = Layout(project.root)
    write_tiny_llama(layout.pretrained)
    (layout.raw / "files/all").mkdir(parents=True)
    rows = "".join(json.dumps(pair(number)) + "\n" for number in range(160))
    (layout.raw / "files/all/pairs.jsonl").write_text(rows)
    provenance = {"origin": "made up", "version": None, "licence": None, "sha256": None, "files": {}}
    for folder in (layout.raw, layout.pretrained):
        (folder / "provenance.json").write_text(json.dumps(provenance))
    params: dict[str, Any] = {
        "experiment": "preferences",
        "data": "preferences",
        "model": "pretrained_decoder",
        "prepare": {"max_length": 40, "duplicates": {"passage_words": None}},
        "train": {
            "max_epochs": 4,
            "optimizer": {"learning_rate": 0.005},
            "batches": {"tokens": 512, "per_epoch": None},
        },
        "evaluate": {"resamples": 200, "min_slice": 5},
        "export": {"generation": {"temperature": 0, "max_new_tokens": 6}},
        "gate": {
            "floors": {"kl": 0.0},
            "resamples": 200,
            "budgets": {"latency": {"ratio": 1000}, "rows": 2, "repeats": 1},
        },
        "task": {"prompts": ["thanks"], "sample_tokens": 4},
        "trainer": "cpu",
    }
    layout.params.write_text(yaml.safe_dump(params))
    run_stages(layout)
    metrics = read_json(layout.evaluation / "metrics.json")
    assert metrics["test"]["accuracy"]["value"] > metrics["baselines"]["reference"]["accuracy"]["value"]

    refused = run("promote", status=3)
    assert "kl is" in refused and "at most 0 is required" in refused
    params["gate"]["floors"]["kl"] = metrics["test"]["kl"]["value"] + 0.01
    layout.params.write_text(yaml.safe_dump(params))
    resolved.write(layout.resolved, compose(layout))
    assert "is now the champion" in run("promote")
    folder = str(layout.exported / "model")
    with served(project.root, project.root / "log", folder) as server:
        body = {"model": folder, "messages": [{"role": "user", "content": "thanks"}], "max_tokens": 6}
        response = ask(server.port, "POST", "/v1/chat/completions", body)
        assert response.status == 200, response.body
        assert response.json()["choices"][0]["message"]["content"].strip()

    params["train"]["optimizer"]["learning_rate"] = 0.004
    layout.params.write_text(yaml.safe_dump(params))
    run_stages(layout)
    compared = run("compare", "champion", "challenger")
    assert "accuracy" in compared and "kl" in compared
