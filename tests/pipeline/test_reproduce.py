"""A version made again from its commit, and a run's choices written back as an experiment."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.project import Project
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config import resolved
from textmill.config.compose import compose
from textmill.config.inverse import sections
from textmill.config.layout import Layout
from textmill.files import folder_digests

pytestmark = pytest.mark.slow

NAME = "tiny-reviews"


@pytest.fixture
def in_project(built_project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Project]:
    """The built project, whose working folder, worktrees and temporary files must be as before in the end."""
    monkeypatch.chdir(built_project.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = traces(built_project)
    yield built_project
    assert traces(built_project) == before
    assert not list(tmp_path.glob("textmill-reproduce-*"))


def traces(project: Project) -> dict[str, Any]:
    """Everything that a reproduction must leave as it was."""
    import sqlite3

    with sqlite3.connect(project.root / "mlflow.db") as database:
        counts = {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("runs", "model_versions", "metrics")
        }
    return {
        "worktrees": project.run("git", "worktree", "list").stdout,
        "status": project.run("git", "status", "--porcelain").stdout,
        "data": folder_digests(project.root / "data"),
        "cache": sorted(str(path) for path in (project.root / ".dvc/cache").rglob("*")),
        **counts,
    }


def textmill(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


# -- reproduce -------------------------------------------------------------------------------


def test_training_again_gives_equal_metrics_and_weights(in_project: Project) -> None:
    done = textmill("reproduce", "1", "--force", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["equal"]
    assert found["same_weights"]
    assert found["ran"] == ["train", "evaluate", "export"]
    assert found["commit"] == in_project.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
    names = {figure["name"] for figure in found["figures"]}
    assert {"test/weighted_f1", "export/int8"} <= names
    assert all(figure["registered"] == pytest.approx(figure["reproduced"], abs=1e-6) for figure in found["figures"])


def test_other_metrics_are_told_and_refused(in_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from textmill.registry.lineage import reproduction
    from textmill.registry.lineage.reproduction import ReproducedMetric, Reproduction

    figures = [
        ReproducedMetric("test/weighted_f1", 0.91, 0.9),
        ReproducedMetric("test/x", 1.0, None),
        ReproducedMetric("test/nan", 1.0, math.nan),
    ]
    found = Reproduction("c", ["evaluate", "export"], figures, False)
    assert [figure.name for figure in found.differing(0.1)] == ["test/x", "test/nan"]
    monkeypatch.setattr(reproduction, "reproduce", lambda *_, **__: found)  # what it finds has tests of its own
    told = textmill("reproduce", "1")
    assert told.exit_code == 3
    assert "0 of 3 metrics are equal" in told.stdout
    document = textmill("reproduce", "1", "--json", "--tolerance", "0.1")
    assert document.exit_code == 3
    assert json.loads(document.stdout)["equal"] is False
    assert json.loads(document.stdout)["figures"][2]["reproduced"] is None  # JSON has no NaN


def test_data_that_left_the_cache_is_made_again(in_project: Project, tmp_path: Path) -> None:
    """Without any cached output the stages run from the user's own files on."""
    cache, away = in_project.root / ".dvc/cache", tmp_path / "cache"
    shutil.move(cache, away)
    cache.mkdir()
    try:
        done = textmill("reproduce", "1")
    finally:
        shutil.rmtree(cache)
        shutil.move(away, cache)
    assert done.exit_code == 0, done.output
    assert "Stages run: compose, fetch, prepare, train, evaluate, export" in " ".join(done.stdout.split())
    assert "the weights are identical" in " ".join(done.stdout.split())


def test_uncommitted_changes_are_refused(in_project: Project) -> None:
    import mlflow

    from textmill.registry.lineage.lineage import find_origin

    find_origin("1", Layout(in_project.root))
    client = mlflow.MlflowClient()
    tags = client.get_model_version(NAME, "1").tags
    client.set_model_version_tag(NAME, "1", "textmill.git_dirty", "true")
    client.set_model_version_tag(NAME, "1", "textmill.dvc_lock_upstream_sha256", "0" * 64)
    try:
        done = in_project.run("textmill", "reproduce", "1", check=False)
    finally:
        for key in ("textmill.git_dirty", "textmill.dvc_lock_upstream_sha256"):
            client.set_model_version_tag(NAME, "1", key, tags[key])
    assert done.returncode == 1
    assert "had uncommitted changes" in done.stderr
    assert "--allow-dirty" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_reproduction_cleans_up(in_project: Project, tmp_path: Path, number: signal.Signals) -> None:
    command = [str(Path(sys.executable).parent / "textmill"), "reproduce", "1"]
    process = subprocess.Popen(
        command, cwd=in_project.root, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("evaluate"):
            break
    time.sleep(1)
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 128 + number, rest
    assert "Traceback" not in rest


# -- adopt -----------------------------------------------------------------------------------


@pytest.fixture
def adopted(in_project: Project) -> Iterator[Path]:
    path = in_project.root / "conf/experiment/adopted.yaml"
    yield path
    path.unlink(missing_ok=True)


def test_adopted_version_composes_to_the_same_values(in_project: Project, adopted: Path) -> None:
    done = textmill("adopt", f"{NAME}/1", "adopted")
    assert done.exit_code == 0
    layout = Layout(in_project.root)
    assert sections(compose(layout, ["experiment=adopted"])) == sections(resolved.read(layout.resolved))
    text = adopted.read_text()
    expected = yaml.safe_load((layout.conf / "experiment/tiny.yaml").read_text())
    del expected["train"]["max_epochs"]  # as the group has it
    del expected["runtime"]  # of the machine, not of the version
    assert yaml.safe_load(text) == expected
    assert "dvc exp run -S experiment=adopted" in done.stdout
    again = in_project.run("textmill", "adopt", f"{NAME}/1", "adopted", check=False)
    assert again.returncode == 1
    assert "the file exists" in again.stderr
    assert adopted.read_text() == text
    assert textmill("adopt", f"{NAME}/1", "adopted", "--force").exit_code == 0


def test_adopted_run_keeps_what_each_stage_really_used(in_project: Project, adopted: Path) -> None:
    run_id = json.loads((in_project.root / "data/registered/registered.json").read_text())["run_id"]
    found = json.loads(textmill("adopt", run_id, "adopted", "--json").stdout)
    assert found["path"] == "conf/experiment/adopted.yaml"
    assert run_id in found["origin"]
    assert found["overruled"] == []


def test_adopted_dvc_experiment(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project.run(
        *(
            "dvc",
            "exp",
            "run",
            "--name",
            "bold-owl",
            "-S",
            "seed=5",
            "-S",
            "train.optimizer.learning_rate=0.02",
            "compose",
        )
    )
    project.run("git", "checkout", "--quiet", "params.yaml", "dvc.lock")
    project.run("textmill", "adopt", "bold-owl")
    text = (project.root / "conf/experiment/bold-owl.yaml").read_text()
    written = yaml.safe_load(text)
    assert (written["seed"], written["train"]["optimizer"]["learning_rate"]) == (5, 0.02)
    told = project.run("textmill", "adopt", "bold-owl", "again", "--json").stdout
    assert json.loads(told)["overruled"] == ["evaluate.seed", "train.seed"]
    missing = project.run("textmill", "adopt", "no-such-thing", check=False)
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
    assert "no DVC experiment, run, version or git revision" in missing.stderr
    written_by_hand = project.run("python", "-m", "textmill.stages.train", "train.max_epochs=1", "seed=3")
    assert written_by_hand.returncode == 0
    run_id = json.loads((project.root / "data/trained/run.json").read_text())["run_id"]
    project.run("textmill", "adopt", run_id, "by-hand")
    by_hand = yaml.safe_load((project.root / "conf/experiment/by-hand.yaml").read_text())
    assert (by_hand["train"]["max_epochs"], by_hand["train"]["seed"]) == (1, 3)


# -- card ------------------------------------------------------------------------------------


def test_card_adds_what_the_registry_knows(in_project: Project, tmp_path: Path) -> None:
    target = tmp_path / "card.md"
    assert textmill("card", "challenger", "--output", str(target)).exit_code == 0
    card = target.read_text()
    assert "## Metrics" in card
    assert f"| version | {NAME}/1, challenger |" in card
    assert "## Origin" in card
    assert json.loads(textmill("card", "1", "--json").stdout)["card"] == card


def test_card_tells_the_decisions(in_project: Project) -> None:
    import mlflow

    from textmill.registry.lineage.lineage import find_origin
    from textmill.registry.promotion.events import Event, record_event

    find_origin("1", Layout(in_project.root))
    event = Event(
        "1", "2026-01-02T03:04:05+00:00", "ann", "promotion", "1", None, "moved", "pass", "better", "floors | held"
    )
    client = mlflow.MlflowClient()
    record_event(client, NAME, event)
    try:
        card = textmill("card", "1").stdout
    finally:
        client.delete_registered_model_tag(NAME, event.key)
    assert (
        "| 2026-01-02T03:04:05+00:00 | promotion of version 1 over none | moved (pass) | ann "
        "| better floors / held |" in card
    )
