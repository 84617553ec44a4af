"""`textmill serve --shadow` and `--canary`: who answers, what is counted, the take-back and the history."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.http_client import Answer, ask
from support.serving import Server, served
from support.tiny_export import STATE
from support.tiny_registry import NAME, aliases, build_registry, copy_registry, register_export, store, textmill

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import read_json, write_json
from textmill.predicting.exported import write_manifest
from textmill.registry.versions import versions
from textmill.serving.loading import FetchedModel, Identity
from textmill.serving.trial import check_pair, in_share, said

pytestmark = pytest.mark.slow
SAME, SWAPPED, FAILING = "2", "3", "4"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """Versions 1 and 2 answer alike, 3 the wrong way round, 4 fails on texts that the others cut."""
    with pytest.MonkeyPatch.context() as patch:
        layout = build_registry(tmp_path_factory.mktemp("trial") / "project", patch)
        model = layout.exported / "model"
        description = read_json(model / "textmill.json")
        description["state"]["labels"].reverse()  # version 3 has them swapped
        write_json(model / "textmill.json", {**description, "max_length": 4000})
        write_manifest(model)
        register_export(layout)
    store(layout).set_registered_model_alias(NAME, "champion", "1")
    return layout


@pytest.fixture
def project(built: Layout, tmp_path: Path) -> Layout:
    return copy_registry(built, tmp_path / "copy")


def challenge(layout: Layout, version: str) -> None:
    store(layout).set_registered_model_alias(NAME, "challenger", version)


def post(server: Server, path: str, content: Any, **headers: str) -> Answer:
    sent = {"Content-Type": "application/json", **headers}
    answer = ask(server.port, "POST", path, json.dumps(content).encode(), sent)
    assert answer.status in (200, 202), answer.body
    return answer


def verdict(server: Server) -> dict[str, Any]:
    return dict(ask(server.port, "GET", "/trial").json())


def until(server: Server, condition: Any, seconds: float = 40) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while not condition(current := verdict(server)):
        assert time.monotonic() < end, (current, server.log.read_text())
        time.sleep(0.1)
    return current


def test_shadow_compares_without_answering_and_labels_take_it_back(project: Layout, tmp_path: Path) -> None:
    challenge(project, SWAPPED)
    arguments = ("--shadow", "challenger", "--capture", str(tmp_path / "own"))
    with served(project.root, tmp_path / "log", *arguments) as server:
        identifiers = {}
        for number in range(20):
            answer = post(server, "/predict", {"input": f"great film {number}"})
            assert answer.headers["x-textmill-model"] == f"{NAME}/1"
            identifiers[answer.headers["x-textmill-request"]] = answer.json()["output"]["label"]
        current = until(server, lambda now: now["requests"]["compared"] + now["requests"]["dropped"] == 20)
        assert (current["state"], current["verdict"], current["agreement"]) == ("running", "undecided", 0.0)
        assert current["requests"]["compared"] >= 12
        assert server.metric('textmill_trial_total{what="compared"}') == current["requests"]["compared"]
        for identifier, label in identifiers.items():
            post(server, "/feedback", {"request": identifier, "answer": label})
        current = until(server, lambda now: now["state"] == "taken back")
        assert current["verdict"] == "worse" and current["quality"]["count"] <= 12
        assert server.metric("textmill_trial_running") == 0
        assert post(server, "/predict", {"input": "great"}).headers["x-textmill-model"] == f"{NAME}/1"
    events = json.loads(textmill("history", "--json", cwd=project.root).stdout)["events"]
    assert [(one["action"], one["version"], one["champion"], one["outcome"]) for one in events] == [
        ("shadow", SWAPPED, "1", "taken back")
    ]
    assert "right less often" in events[0]["words"]
    assert "taken back" in textmill("history", cwd=project.root).stdout
    assert aliases(project)["champion"] == "1"
    with served(project.root, tmp_path / "again", "--canary", "5%") as server:  # no outage
        assert "was taken back on" in verdict(server)["reason"] and verdict(server)["state"] == "no challenger"


def test_canary_answers_its_share_and_errors_take_it_back_without_a_lost_request(
    project: Layout, tmp_path: Path
) -> None:
    challenge(project, FAILING)
    with served(project.root, tmp_path / "log", "--canary", "30%") as server:
        server.until(f"canary {NAME} version {FAILING}")
        for number in range(40):
            key = f"user {number}"
            answer = post(server, "/predict", {"input": "great film"}, **{"X-Textmill-Key": key})
            wanted = FAILING if in_share(key.encode(), 0.3) else "1"
            assert answer.headers["x-textmill-model"] == f"{NAME}/{wanted}"
        current = until(server, lambda now: now["requests"]["compared"] + now["requests"]["dropped"] == 40)
        assert current["agreement"] == 1.0 and current["state"] == "running"
        long = "great film " * 500
        for number in range(400):
            answer = post(server, "/predict", {"input": f"{long} {number}"})  # 200, whoever answers
            assert answer.headers["x-textmill-model"] == f"{NAME}/1"
            if verdict(server)["state"] != "running":
                break
        current = until(server, lambda now: now["state"] == "taken back")
        assert "it fails where the champion answers" in current["reason"]
        for number in range(20):
            answer = post(server, "/predict", {"input": "great"}, **{"X-Textmill-Key": f"user {number}"})
            assert answer.headers["x-textmill-model"] == f"{NAME}/1"
        assert server.metric('textmill_requests_total{path="/predict",status="5') == 0
    events = json.loads(textmill("history", "--json", cwd=project.root).stdout)["events"]
    assert [(one["action"], one["version"], one["outcome"]) for one in events] == [("canary", FAILING, "taken back")]


def test_challenger_that_hangs_holds_no_client_and_no_shutdown(
    project: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "check_in_fresh_process", lambda *_: None)  # it has tests of its own
    monkeypatch.setenv("TEXTMILL_PLUGINS", "support")
    model = project.exported / "model"
    description = read_json(model / "textmill.json")
    description["task"] = {"_target_": "support.hanging_task.HangingClassification"}
    for hangs, alias in ((False, "champion"), (True, "challenger")):
        write_json(model / "textmill.json", {**description, "state": {**STATE, "hangs": hangs}})
        write_manifest(model)
        store(project).set_registered_model_alias(NAME, alias, register_export(project).version)
    paths = os.pathsep.join(filter(None, sys.path))
    arguments = ("--canary", "50%", "--trial-seconds", "0.5", "--workers", "1")
    with served(project.root, tmp_path / "log", *arguments, PYTHONPATH=paths) as server:
        server.until("compared with")
        aside = {"X-Textmill-Key": next(str(n) for n in range(99) if not in_share(str(n).encode(), 0.5))}
        post(server, "/predict", {"input": "do hang"}, **aside)
        current = until(server, lambda now: now["requests"]["compared"] == 1)
        assert (current["errors"]["mean"], current["agreement"]) == (1.0, None)
        post(server, "/predict", {"input": "great"}, **aside)  # the second process was started again
        assert until(server, lambda now: now["requests"]["compared"] == 2)["agreement"] == 1.0
        started, asked = time.monotonic(), 0
        while verdict(server)["state"] == "running" and time.monotonic() < started + 50:
            for number in range(10):
                answer = post(server, "/predict", {"input": "do hang"}, **{"X-Textmill-Key": str(number)})
                assert answer.headers["x-textmill-model"] == f"{NAME}/5"
            asked += 10
        current = verdict(server)
        assert current["state"] == "taken back", current
        assert "it fails where the champion answers" in current["reason"]
        assert "no answer within 0.5 s" in current["reason"]
        assert 0 < current["requests"]["fallback"] < asked
        assert post(server, "/predict", {"input": "great"}).headers["x-textmill-model"] == f"{NAME}/5"
        server.process.terminate()
        assert server.process.wait(10) == 0, server.log.read_text()
    assert "all accepted requests were answered" in server.log.read_text()


def test_challenger_beside_the_champion_answers_by_name_and_both_aliases_are_followed(
    project: Layout, tmp_path: Path
) -> None:
    challenge(project, SWAPPED)
    with served(project.root, tmp_path / "log", "--beside", "challenger", "--poll-seconds", "0.2") as server:

        def listed() -> dict[str, str]:
            return {one["id"]: one["alias"] for one in ask(server.port, "GET", "/v1/models").json()["data"]}

        def label(**headers: str) -> tuple[str, str]:
            answer = post(server, "/predict", {"input": "great film"}, **headers)
            return answer.headers["x-textmill-model"], answer.json()["output"]["label"]

        assert listed() == {f"{NAME}/1": "champion", f"{NAME}/{SWAPPED}": "challenger"}
        first, other = label(), label(**{"X-Textmill-Model": f"{NAME}/{SWAPPED}"})
        assert (first[0], other[0]) == (f"{NAME}/1", f"{NAME}/{SWAPPED}") and first[1] != other[1]
        assert label(**{"X-Textmill-Model": NAME}) == first
        assert server.metric("textmill_model_info") == 2
        challenge(project, "2")
        server.until(f"serving {NAME} version 2 instead of {NAME} version {SWAPPED}")
        assert listed() == {f"{NAME}/1": "champion", f"{NAME}/2": "challenger"}
        sent = {"Content-Type": "application/json", "X-Textmill-Model": f"{NAME}/{SWAPPED}"}
        gone = ask(server.port, "POST", "/predict", b'{"input": "great"}', sent)
        assert gone.status == 404 and f"this server has '{NAME}/1', '{NAME}/2'" in gone.json()["error"]
        store(project).set_registered_model_alias(NAME, "champion", "2")
        server.until(f"serving {NAME} version 2 instead of {NAME} version 1")
        assert listed() == {f"{NAME}/2": "champion"}  # one model, not twice
        assert server.metric("textmill_model_info") == 1
    store(project).delete_registered_model_alias(NAME, "challenger")
    none = textmill("serve", "--port", "0", "--beside", "challenger", cwd=project.root)
    assert none.returncode == 1 and f"{NAME} has no challenger yet" in none.stderr and "Traceback" not in none.stderr
    broken = tmp_path / "broken"
    shutil.copytree(project.exported / "model", broken)
    (broken / "textmill.json").write_bytes((broken / "textmill.json").read_bytes() + b"\n")
    refused = textmill("serve", "--port", "0", "--beside", str(broken), cwd=project.root)
    assert refused.returncode == 1 and "textmill.json: " in refused.stderr and "Traceback" not in refused.stderr
    folder = textmill("serve", str(project.exported / "model"), "--beside", "none/here", cwd=project.root)
    assert folder.returncode == 1 and "none/here: no such folder" in folder.stderr


def test_trial_that_cannot_be_compared_is_refused_in_one_line(project: Layout) -> None:
    def refused(*arguments: str) -> str:
        ended = textmill("serve", "--port", "0", *arguments, cwd=project.root)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        return " ".join(ended.stderr.split())

    assert "no share" in refused("--canary", "x")
    assert "both given" in refused("--canary", "5%", "--shadow", "challenger")


def test_server_without_challenger_serves_and_follows_both_aliases(project: Layout, tmp_path: Path) -> None:
    store(project).delete_registered_model_alias(NAME, "challenger")
    with served(project.root, tmp_path / "log", "--canary", "5%", "--poll-seconds", "0.2") as server:
        assert server.log.read_text().count("no other challenger is tried") == 1
        assert post(server, "/predict", {"input": "great"}).headers["x-textmill-model"] == f"{NAME}/1"
        none = verdict(server)
        assert none["state"] == "no challenger" and f"{NAME} has no challenger yet" in none["reason"]
        challenge(project, "1")
        until(server, lambda now: "the challenger is the champion" in now["reason"])
        challenge(project, SWAPPED)
        until(server, lambda now: now["state"] == "running")
        for champion in ("2", "1"):  # without a request between them
            store(project).set_registered_model_alias(NAME, "champion", champion)
            until(server, lambda now, name=f"{NAME} version {champion}": now.get("champion") == name)
        assert server.log.read_text().count("is ended: the champion is now") == 2
        challenge(project, "2")
        until(server, lambda now: now["challenger"] == f"{NAME} version 2")
        assert f"is ended: the challenger is now {NAME} version 2" in server.log.read_text()
        assert server.metric("textmill_trial_running") == 1
        assert verdict(server)["requests"]["compared"] == 0


def test_challenger_of_another_task_is_refused(built: Layout, tmp_path: Path) -> None:
    models = []
    for target in ("text_classification.TextClassification", "text_regression.TextRegression"):
        folder = tmp_path / target
        folder.mkdir()
        description = read_json(built.exported / "model" / "textmill.json")
        description["task"] = {"_target_": f"textmill.tasks.{target}"}
        write_json(folder / "textmill.json", description)
        models.append(FetchedModel(folder, Identity(NAME, target[:6], target)))
    with pytest.raises(UserError, match="has the task TextRegression, the champion TextClassification"):
        check_pair(*models, "--shadow")
    description = read_json(built.exported / "model" / "textmill.json")
    for number, labels in enumerate((["good", "bad"], ["bad", "fine"])):
        description["state"]["labels"] = labels
        write_json(models[number].folder / "textmill.json", description)
    with pytest.raises(UserError, match="other labels than the champion: it lacks good and adds fine"):
        check_pair(*models, "--shadow")


def test_share_by_hash_is_stable_and_answers_are_read_for_their_label() -> None:
    chosen = {number for number in range(20_000) if in_share(b"%d" % number, 0.05)}
    assert 900 < len(chosen) < 1100
    assert chosen <= {number for number in range(20_000) if in_share(b"%d" % number, 0.1)}
    assert said({"label": "good", "probability": 0.9}) == said(" good ") == "good"
    assert said({"labels": ["b", "a"]}) == said(["a", "b"])
