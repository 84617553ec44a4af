"""A server that follows an alias: another champion under load, broken versions, a registry that is down."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.http_client import Answer, Connection, ask, load
from support.serving import Server, served
from support.tiny_export import (
    RUNTIME,
    build_evaluated_project,
    export_config,
    mlflow_server,
    register_config,
    wait_for,
)

from textmill.config.layout import Layout
from textmill.files import read_json, write_json
from textmill.registry import versions
from textmill.registry.store import connect
from textmill.serving.exported import write_manifest
from textmill.stages import export, register

NAME = "tiny-reviews"
CHAMPION = f"models:/{NAME}@champion"
GOOD, OTHER, TAMPERED, PICKLED, REWRITTEN = "1", "2", "3", "4", "5"
LABELS = {GOOD: {"good", "bad"}, OTHER: {"fine", "poor"}}
POLL = ("--poll-seconds", "0.2")

pytestmark = pytest.mark.slow


def relabel(model: Path, labels: list[str]) -> None:
    """Make another model of it, which answers in other words."""
    description = read_json(model / "textmill.json")
    description["state"]["labels"] = labels
    write_json(model / "textmill.json", description)
    write_manifest(model)


def client(layout: Layout) -> Any:
    import mlflow

    connect(RUNTIME, layout)
    return mlflow.MlflowClient()


def appoint(layout: Layout, version: str) -> None:
    client(layout).set_registered_model_alias(NAME, "champion", version)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Five versions: two that answer in different words, and three whose stored files were tampered with."""
    layout = build_evaluated_project(tmp_path_factory.mktemp("following") / "project")
    export.main(export_config(max_length=64), RUNTIME, layout)
    register.main(register_config(), RUNTIME, layout)
    run = read_json(layout.registered / "registered.json")["run_id"]
    model = layout.exported / "model"
    for version in (OTHER, TAMPERED, PICKLED, REWRITTEN):
        relabel(model, sorted(LABELS[OTHER], reverse=True) if version == OTHER else [f"no{version}", f"yes{version}"])
        tags = versions.version_tags(model, run, layout)
        versions._create(client(layout), NAME, model, run, tags)
    stored = {
        version: versions.download(f"models:/{NAME}/{version}", layout) for version in (TAMPERED, PICKLED, REWRITTEN)
    }
    with (stored[TAMPERED] / "model.int8.onnx").open("r+b") as file:
        file.write(b"tampered")
    (stored[PICKLED] / "model.safetensors").rename(stored[PICKLED] / "model.pkl")
    write_manifest(stored[PICKLED])
    relabel(stored[REWRITTEN], ["bad", "good"])  # with a manifest to match
    return layout


@pytest.fixture
def layout(project: Layout) -> Layout:
    appoint(project, GOOD)
    return project


def labels(server: Server) -> tuple[str, set[str]]:
    answer = ask(server.port, "POST", "/predict", {"input": "great film"})
    assert answer.status == 200
    return answer.headers["x-textmill-model"], set(answer.json()["output"]["probabilities"])


def test_new_champion_is_picked_up_under_load_without_an_error(layout: Layout, tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    mixed: list[Answer] = []

    def one(number: int) -> Callable[[], Awaitable[None]]:
        connection = Connection(server.port)

        async def request() -> None:
            answer = await connection.post("/predict", {"inputs": ["great film", "a dreadful, boring plot"]})
            served_by = answer.headers["x-textmill-model"].rpartition("/")[2]
            outcomes[f"{answer.status} by {served_by}"] += 1
            if any(set(output["probabilities"]) != LABELS[served_by] for output in answer.json()["outputs"]):
                mixed.append(answer)

        return request

    async def moves() -> None:
        for version in (OTHER, GOOD, OTHER):
            await asyncio.sleep(1.0)
            await asyncio.to_thread(appoint, layout, version)

    async def both() -> None:
        await asyncio.gather(load(6.0, 16, one), moves())

    with served(layout.root, tmp_path / "log", CHAMPION, *POLL) as server:
        assert labels(server) == (f"{NAME}/1", LABELS[GOOD])
        asyncio.run(both())
        server.until("version 2 answers instead of tiny-reviews version 1")
        assert labels(server) == (f"{NAME}/2", LABELS[OTHER])
        assert ask(server.port, "GET", "/version").json()["version"] == OTHER
        assert server.metric("textmill_model_info{manifest_sha256=") == 1
        assert server.metric("textmill_model_loads_total") >= 4
    assert not mixed
    assert set(outcomes) == {"200 by 1", "200 by 2"}, outcomes
    assert min(outcomes.values()) > 10


def test_broken_versions_are_refused_and_the_old_one_goes_on(layout: Layout, tmp_path: Path) -> None:
    with served(layout.root, tmp_path / "log", CHAMPION, *POLL) as server:
        for version, words in (
            (TAMPERED, "model.int8.onnx: the file was changed after the export"),
            (PICKLED, "manifest.json: these digests are not those that were registered"),
            (REWRITTEN, "manifest.json: these digests are not those that were registered"),
        ):
            appoint(layout, version)
            server.until(f"version {version} is refused, {NAME} version 1 goes on")
            assert words in server.log.read_text().splitlines()[-1]
            assert labels(server) == (f"{NAME}/1", LABELS[GOOD])
            assert server.metric(f'textmill_model_refusals_total{{version="{version}"}}') >= 1
        appoint(layout, OTHER)
        server.until("version 2 answers")
        assert labels(server) == (f"{NAME}/2", LABELS[OTHER])
        client(layout).delete_registered_model_alias(NAME, "champion")
        server.until("has no champion yet")
        assert labels(server)[0] == f"{NAME}/2"
    assert "Traceback" not in server.log.read_text()


def test_first_model_must_be_there_and_whole(layout: Layout, tmp_path: Path) -> None:
    client(layout).delete_registered_model_alias(NAME, "champion")
    for address, words in (
        (CHAMPION, f"{NAME} has no champion yet. Run `textmill promote`, or serve another: --model models:/{NAME}@"),
        (f"models:/{NAME}/{TAMPERED}", "model.int8.onnx: the file was changed"),
        (f"models:/{NAME}/77", "no such version"),
        ("models:/nonsense", "not the address of a version"),
    ):
        command = [str(Path(sys.executable).parent / "textmill"), "serve", "--port", "0", address]
        done = subprocess.run(command, cwd=layout.root, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert [line for line in done.stderr.splitlines() if words in line and line.startswith("textmill: error:")]
        assert "Traceback" not in done.stderr


def test_registry_that_goes_down_is_told_and_harms_nobody(layout: Layout, tmp_path: Path) -> None:
    project = Layout(Path(shutil.copytree(layout.root, tmp_path / "project", ignore=shutil.ignore_patterns("ml*"))))
    shutil.rmtree(project.registered)
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    relabel(project.exported / "model", ["bad", "good"])
    with mlflow_server(tmp_path / "server") as address:
        runtime = RUNTIME.model_copy(update={"tracking_uri": address})
        import mlflow

        connect(runtime, project)
        store = mlflow.MlflowClient()
        run = store.create_run(store.get_experiment_by_name("tiny").experiment_id).info.run_id
        model = project.exported / "model"
        versions._create(store, NAME, model, run, versions.version_tags(model, run, project))
        store.set_registered_model_alias(NAME, "champion", "1")
        with served(project.root, tmp_path / "log", CHAMPION, *POLL, MLFLOW_TRACKING_URI=address, **quick) as server:
            assert server.metric("textmill_registry_up") == 1
            down(address)
            server.until("the registry cannot be asked")
            assert server.metric("textmill_registry_up") == 0
            assert labels(server)[0] == f"{NAME}/1"
            assert ask(server.port, "GET", "/ready").status == 200
            assert server.log.read_text().count("the registry cannot be asked") == 1


def down(address: str) -> None:
    """End whoever listens there."""
    import psutil

    port = int(address.rpartition(":")[2])
    for process in psutil.process_iter():
        try:
            listens = any(c.laddr.port == port and c.status == "LISTEN" for c in process.net_connections("inet"))
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if listens:
            process.send_signal(signal.SIGKILL)


@contextmanager
def mlflow_serves(layout: Layout, uri: str, log: Path) -> Iterator[int]:
    """MLflow's own scoring server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{layout.root / 'mlflow.db'}"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def test_mlflow_serves_the_same_version_with_the_same_answers(layout: Layout, tmp_path: Path) -> None:
    texts = ["great film", "a dreadful, boring plot"]
    command = [str(Path(sys.executable).parent / "textmill"), "predict", *texts, "--json"]
    command += ["--model", f"models:/{NAME}/{GOOD}"]
    done = subprocess.run(command, cwd=layout.root, capture_output=True, text=True, check=True)
    expected = [{name: record[name] for name in record if name != "input"} for record in json.loads(done.stdout)]
    with mlflow_serves(layout, f"models:/{NAME}/{GOOD}", tmp_path / "log") as port:
        asked = {"dataframe_records": [{"text": text} for text in texts]}
        answer = ask(port, "POST", "/invocations", asked)
    assert answer.status == 200, answer.body
    for found, wanted in zip(answer.json()["predictions"], expected, strict=True):
        assert found["label"] == wanted["label"]
        assert found["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-4)
