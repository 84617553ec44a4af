"""A server that follows an alias: another champion under load, broken versions, a registry that is down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from support.http_client import Answer, Connection, ask, load
from support.serving import Server, served
from support.tiny_export import (
    RUNTIME,
    build_evaluated_project,
    export_config,
    mlflow_server,
    wait_for,
)
from support.tiny_registry import textmill

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import read_json, write_json
from textmill.predicting.exported import write_manifest
from textmill.registry.runs.store import connect
from textmill.registry.versions import versions
from textmill.registry.versions.registered_source import RegisteredSource
from textmill.stages import export

NAME = "tiny-reviews"
CHAMPION = f"models:/{NAME}@champion"
GOOD, OTHER, TAMPERED, PICKLED = "1", "2", "3", "4"
LABELS = {GOOD: {"good", "bad"}, OTHER: {"fine", "poor"}}
POLL = ("--poll-seconds", "0.2")

pytestmark = pytest.mark.slow


def relabel(model: Path, labels: list[str]) -> None:
    """Make another model of it, which answers in other words."""
    description = read_json(model / "textmill.json")
    description["state"]["labels"] = labels
    write_json(model / "textmill.json", description)
    write_manifest(model)


def client(layout: Layout) -> MlflowClient:
    connect(RUNTIME, layout)
    return MlflowClient()


def appoint(layout: Layout, version: str) -> None:
    client(layout).set_registered_model_alias(NAME, "champion", version)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Four versions: two that answer in different words, and two whose stored files were tampered with."""
    layout = build_evaluated_project(tmp_path_factory.mktemp("following") / "project")
    export.main(export_config(max_length=64), RUNTIME, layout)
    store = client(layout)
    create(store, layout)
    relabel(layout.exported / "model", ["poor", "fine"])
    create(store, layout)
    for version, harm in ((TAMPERED, tamper), (PICKLED, pickle)):
        create(store, layout)
        harm(versions.download(f"models:/{NAME}/{version}", layout))
    return layout


def create(store: MlflowClient, layout: Layout) -> None:
    """Register the exported folder, without the trial in a fresh process."""
    run = store.create_run(store.get_experiment_by_name("tiny").experiment_id).info.run_id
    model = layout.exported / "model"
    versions.mark_tried(store, versions._create(store, NAME, model, run, versions.version_tags(model, run, layout), {}))


def tamper(folder: Path) -> None:
    with (folder / "model.int8.onnx").open("r+b") as file:
        file.write(b"tampered")


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.pkl")


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
        server.until("serving tiny-reviews version 2 instead of tiny-reviews version 1")
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
            (PICKLED, "model.pkl: a pickle can run any code and is refused"),
        ):
            appoint(layout, version)
            server.until(f"version {version} is refused, {NAME} version 1 keeps serving")
            assert words in server.log.read_text().splitlines()[-1]
            assert labels(server) == (f"{NAME}/1", LABELS[GOOD])
            assert server.metric(f'textmill_model_refusals_total{{version="{version}"}}') >= 1
        appoint(layout, OTHER)
        server.until(f"serving {NAME} version 2")
        assert labels(server) == (f"{NAME}/2", LABELS[OTHER])
        client(layout).delete_registered_model_alias(NAME, "champion")
        server.until("has no champion yet")
        assert labels(server)[0] == f"{NAME}/2"
    assert "Traceback" not in server.log.read_text()


def test_digest_in_the_registry_counts_more_than_the_manifest(layout: Layout) -> None:
    """As if someone had changed the folder, with a manifest to match."""
    tag, forged = "textmill.manifest_sha256", r"manifest\.json: the manifest differs from the registered one"
    kept = client(layout).get_model_version(NAME, GOOD).tags[tag]
    client(layout).set_model_version_tag(NAME, GOOD, tag, "0" * 64)
    try:
        with pytest.raises(UserError, match=forged):
            RegisteredSource(CHAMPION, layout).fetch(GOOD)
        for command in (["predict", "great film", "--model", CHAMPION], ["card", f"{NAME}/{GOOD}"]):
            done = textmill(*command, cwd=layout.root)
            assert done.returncode == 1
            assert re.search(forged, done.stderr.splitlines()[-1])
            assert "Traceback" not in done.stderr
    finally:
        client(layout).set_model_version_tag(NAME, GOOD, tag, kept)


@pytest.mark.parametrize(("version", "named"), [(TAMPERED, "model.int8.onnx"), (PICKLED, "model.pkl")])
def test_loading_a_broken_version_names_the_file(
    layout: Layout, version: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"models:/{NAME}/{version}"
    done = textmill("predict", "great film", "--model", address, cwd=layout.root)
    assert done.returncode == 1
    assert re.fullmatch(rf"textmill: error: \S+/{re.escape(named)}: .*\n", done.stderr)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{layout.root / 'mlflow.db'}")
    program = f"import mlflow; mlflow.pyfunc.load_model({address!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    assert f"/{named}: " in done.stderr.splitlines()[-1]


def test_first_model_must_be_there(layout: Layout) -> None:
    assert RegisteredSource(CHAMPION, layout).latest() == GOOD
    with pytest.raises(UserError, match="has no version 77"):
        RegisteredSource(f"models:/{NAME}/77", layout).fetch("77")
    with pytest.raises(UserError, match="not the address of a version"):
        RegisteredSource("models:/nonsense", layout)
    client(layout).delete_registered_model_alias(NAME, "champion")
    command = [str(Path(sys.executable).parent / "textmill"), "serve", "--port", "0", CHAMPION]
    done = subprocess.run(command, cwd=layout.root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    advice = f"Run `textmill promote`, or serve another version: --model models:/{NAME}@challenger."
    assert done.stderr.endswith(f"{NAME} has no champion yet. {advice}\n")
    assert "Traceback" not in done.stderr


def test_registry_that_goes_down_is_told_and_harms_nobody(layout: Layout, tmp_path: Path) -> None:
    project = Layout(Path(shutil.copytree(layout.root, tmp_path / "project", ignore=shutil.ignore_patterns("ml*"))))
    with mlflow_server(tmp_path / "server") as address:
        connect(RUNTIME.model_copy(update={"tracking_uri": address}), project)
        store = MlflowClient()
        create(store, project)
        store.set_registered_model_alias(NAME, "champion", "1")
        quick = {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        with served(project.root, tmp_path / "log", CHAMPION, *POLL, **quick) as server:
            assert server.metric("textmill_registry_up") == 1
            down(address)
            server.until("the registry does not answer")
            assert server.metric("textmill_registry_up") == 0
            assert labels(server)[0] == f"{NAME}/1"
            assert ask(server.port, "GET", "/ready").status == 200
            assert server.log.read_text().count("the registry does not answer") == 1


def down(address: str) -> None:
    """End whoever listens there, at once, with all its processes."""
    port = int(address.rpartition(":")[2])
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(found.laddr.port == port and found.status == "LISTEN" for found in process.net_connections("inet")):
                os.killpg(os.getpgid(process.pid), signal.SIGKILL)


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
