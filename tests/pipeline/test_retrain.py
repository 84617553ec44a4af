"""`textmill retrain`: what a schedule runs each day, in real projects, killed and twice at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
from support.listening import listening
from support.project import LENIENT_GATE, Project, inherited_environment, write_reviews
from support.tiny_registry import NAME, store

from textmill.config.layout import Layout
from textmill.files import write_json
from textmill.registry.promotion.rollback import rollback
from textmill.selection.retraining import _judge

pytestmark = pytest.mark.slow


@pytest.fixture
def project(built_project: Project, tmp_path: Path) -> Project:
    """A project of 240 rows with stable splits, before its first run."""
    project = Project(tmp_path / "project")
    shutil.copytree(
        built_project.root, project.root, symlinks=True, ignore=shutil.ignore_patterns("mlruns", "mlflow.db*")
    )
    with (project.root / "params.yaml").open("a") as file:
        file.write(LENIENT_GATE)
    project.edit("conf/data/tiny.yaml", "splits: {", "splits: {method: stable, ")
    return project


def retrain(project: Project, *arguments: str, code: int) -> dict[str, object]:
    done = project.run("textmill", "retrain", "--json", *arguments, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout)) if done.stdout else {"errors": done.stderr}


def champion(project: Project) -> str | None:
    told = json.loads(project.run("textmill", "history", "--json").stdout)
    return dict(told["aliases"]).get("champion")


def started(project: Project, *arguments: str) -> subprocess.Popen[str]:
    environment = inherited_environment() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        ["textmill", "retrain", *arguments],
        cwd=project.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"{words!r} was not printed")


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A server that keeps what is posted to it."""
    received: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as address:
        yield f"{address}/services/secret-path", received


def test_retrain_promotes_once_and_tells_what_it_did(project: Project) -> None:
    reviews = project.root / "data/own/reviews.csv"
    with webhook() as (address, received):
        first = retrain(project, "--notify", address, code=0)
        assert (first["outcome"], first["version"], first["champion"]) == ("promoted", "1", None)
        assert received == [first]
        assert "is now the champion" in str(first["text"])

        same = retrain(project, "--notify", address, code=5)
        assert (same["outcome"], same["stages"]) == ("unchanged", [])
        assert len(received) == 1, "nothing to tell"

        write_reviews(reviews, 480)
        tried = retrain(project, "--dry-run", code=0)
        assert "would be promoted" in str(tried["text"])
        assert champion(project) == "1"
        second = retrain(project, "--notify", address, code=0)
        assert (second["version"], second["champion"], second["stages"]) == ("2", "1", [])
        assert champion(project) == "2"

        project.run("textmill", "rollback", "--reason", "complaints")
        again = retrain(project, code=5)
        assert "was judged on" in str(again["text"])
        assert champion(project) == "1", "what a person took back stays back"

        whole = reviews.read_text()
        reviews.write_text("review;stars\n")
        failed = retrain(project, "--notify", address, code=1)
        assert "Traceback" not in str(failed["errors"])
        assert "the stage prepare failed; the champion is as before" in str(failed["errors"])
        assert received[-1]["outcome"] == "error"
        assert "secret-path" not in str(failed["errors"])
        reviews.write_text(whole)
        assert retrain(project, "--notify", "http://127.0.0.1:9/nobody-listens", code=5)["version"] == "2"

    refused = project.run("textmill", "retrain", "--notify", "ftp://host/x", check=False)
    assert refused.returncode == 1
    assert "not an http or https address" in refused.stderr


def test_retrain_of_the_champions_own_files_is_unchanged(three_versions: Layout) -> None:
    """Versions 1 and 2 differ in their cards only, as after a batch of duplicates; version 3 answers otherwise."""
    client = store(three_versions)
    client.set_registered_model_alias(NAME, "champion", "1")
    for version, outcome in (("2", "unchanged"), ("3", "refused")):
        three_versions.registered.mkdir(exist_ok=True)
        write_json(three_versions.registered / "registered.json", {"name": NAME, "version": version})
        done = _judge(three_versions, (), "a test", dry_run=True)
        assert done.outcome == outcome, done
        if outcome == "unchanged":
            assert "is the same model as the champion, version 1: the new rows are none to train on" in done.line


def test_model_that_was_rolled_back_does_not_come_back_under_another_number(three_versions: Layout) -> None:
    client = store(three_versions)
    client.set_registered_model_alias(NAME, "champion", "1")
    client.set_registered_model_alias(NAME, "previous", "3")
    rollback(NAME, three_versions, reason="complaints")
    three_versions.registered.mkdir(exist_ok=True)
    write_json(three_versions.registered / "registered.json", {"name": NAME, "version": "2"})
    done = _judge(three_versions, (), "a test", dry_run=True)
    assert (done.outcome, done.champion) == ("unchanged", "3")
    assert "is the same model as version 1, which was rolled back on" in done.line


def test_retrain_sees_new_rows_at_an_address_that_dvc_does_not_watch(project: Project, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.csv"
    shutil.copy(project.root / "data/own/reviews.csv", elsewhere)
    project.edit("conf/data/tiny.yaml", "data/own/reviews.csv", f"file://{elsewhere}")
    assert retrain(project, code=0)["version"] == "1"
    assert retrain(project, code=5)["stages"] == ["fetch"]
    write_reviews(elsewhere, 300)
    later = project.run("textmill", "retrain", "--json", "--dry-run", check=False)
    assert later.returncode in (0, 3, 4), later.stderr
    assert json.loads(later.stdout)["version"] == "2"


def test_retrain_killed_anywhere_goes_on_and_two_at_once_do_not_meet(project: Project) -> None:
    for words in ("Running stage 'prepare'", "Running stage 'register'"):
        process = started(project)
        wait_for(process, words)
        if "prepare" in words:
            second = project.run("textmill", "retrain", check=False)
            assert second.returncode == 6, second.stderr
            assert "another textmill retrain runs" in second.stderr
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, "DVC and its stage end with the command"
    # Registered, but killed before the gate: by hand here, since the moment is short.
    project.run("dvc", "repro")
    done = retrain(project, code=0)
    assert (done["outcome"], done["stages"]) == ("promoted", [])
    told = json.loads(project.run("textmill", "history", "--json").stdout)
    assert [event["outcome"] for event in told["events"]] == ["moved"]
