"""Registered models: made once, tried in a fresh process, withdrawn when they fail, served by MLflow itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_export import (
    RUNTIME,
    build_evaluated_project,
    export_config,
    mlflow_server,
    register_config,
)

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import folder_digests, read_json, sha256_file
from textmill.predicting.exported import write_manifest
from textmill.registry.versions import fresh_process, versions
from textmill.stages import export, register

NAME = "tiny-reviews"


@pytest.fixture(scope="module")
def registered_once(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = build_evaluated_project(tmp_path_factory.mktemp("registry") / "project")
    (layout.root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  export: {md5: a}\n")
    export.main(export_config(), RUNTIME, layout)
    register.main(register_config(), RUNTIME, layout)
    return layout


@pytest.fixture
def exported(registered_once: Layout, tmp_path: Path) -> Layout:
    """A copy of the exported project with an empty store and nothing registered."""
    ignored = shutil.ignore_patterns("mlflow.db*", "mlruns", "registered")
    return Layout(Path(shutil.copytree(registered_once.root, tmp_path / "project", ignore=ignored)))


def client(layout: Layout) -> Any:
    import mlflow

    from textmill.registry.runs.tracking import connect

    connect(RUNTIME, layout)
    return mlflow.MlflowClient()


def test_version_leads_back_to_what_it_was_made_from(registered_once: Layout) -> None:
    note = read_json(registered_once.registered / "registered.json")
    assert (note["name"], note["version"], note["alias"]) == (NAME, "1", "challenger")
    assert note["uri"] == f"models:/{NAME}/1"
    assert note["metrics"]["weighted_f1"]["value"] == 0.9
    found = client(registered_once).get_model_version_by_alias(NAME, "challenger")
    assert (str(found.version), found.run_id) == ("1", note["run_id"])
    model = registered_once.exported / "model"
    assert found.tags["textmill.manifest_sha256"] == sha256_file(model / "manifest.json")
    assert found.tags["textmill.run_id"] == note["run_id"]
    assert found.tags["textmill.data.test_sha256"] == read_json(model / "provenance.json")["prepared"]["test"]
    assert len(found.tags["textmill.dvc_lock_upstream_sha256"]) == 64
    assert client(registered_once).get_run(note["run_id"]).info.status == "FINISHED"


def test_model_has_signature_example_and_no_pickle(registered_once: Layout) -> None:
    import mlflow

    client(registered_once)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{NAME}/1"))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".bin", ".pt", ".pyc"))]
    assert {"input_example.json", "MLmodel", "served_model.py", "model.int8.onnx"} <= names
    assert folder.is_relative_to(registered_once.root / "mlruns/tiny")
    signature = mlflow.models.get_model_info(str(folder)).signature
    assert [column.name for column in signature.inputs] == [0, "text"]  # 0: a list of texts
    assert [column.name for column in signature.outputs] == ["label", "probability", "probabilities"]
    needed = (folder / "requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in needed} == {
        *("mlflow", "numpy", "pandas", "onnxruntime", "tokenizers", "pydantic", "ftfy")
    }


def test_pyfunc_texts_in_a_list_and_in_a_frame_get_the_same_answers(registered_once: Layout) -> None:
    client(registered_once)
    program = f"""
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/{NAME}/1")
texts = ["great film", "a dreadful plot"]
frame = pd.DataFrame({{"id": [7, 8], "text": texts}}, index=[3, 4])
answers = model.predict(frame)
assert list(answers.index) == [3, 4]
for given in (texts, frame[["text"]], pd.Series(texts), [{{"text": text}} for text in texts]):
    assert model.predict(given).to_dict("records") == answers.to_dict("records"), given
try:
    model.predict(pd.DataFrame({{"body": texts}}))
except Exception as error:
    print(error)
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{registered_once.root / 'mlflow.db'}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "no input" in done.stdout, done.stdout


@pytest.mark.slow
def test_same_model_is_registered_once(registered_once: Layout) -> None:
    for _ in range(2):
        register.main(register_config(), RUNTIME, registered_once)
    found = client(registered_once).search_model_versions(f"name = '{NAME}'")
    assert [str(version.version) for version in found] == ["1"]
    assert read_json(registered_once.registered / "registered.json")["version"] == "1"


@pytest.mark.slow
def test_another_model_is_the_next_version_and_the_challenger(registered_once: Layout, tmp_path: Path) -> None:
    layout = Layout(Path(shutil.copytree(registered_once.root, tmp_path / "project")))
    model = layout.exported / "model"
    (model / "README.md").write_text("another card\n")
    write_manifest(model)
    register.main(register_config(), RUNTIME, layout)
    assert str(client(layout).get_model_version_by_alias(NAME, "challenger").version) == "2"
    done = textmill("predict", "great film", "--model", f"models:/{NAME}@challenger", "--json", cwd=layout.root)
    other = textmill("predict", "great film", "--model", f"models:/{NAME}/1", "--json", cwd=layout.root)
    assert json.loads(done.stdout) == json.loads(other.stdout) != []


def textmill(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "textmill"), *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, env={**inherited, **environment}
    )


# -- what must not be registered -------------------------------------------------------------


def change_an_answer(layout: Layout) -> None:
    path = layout.exported / "examples.json"
    examples = read_json(path)
    examples["outputs"][7]["probabilities"]["good"] += 0.001
    path.write_text(json.dumps(examples))


def break_the_tokenizer(layout: Layout) -> None:
    """Every digest is right, but the answers cannot be."""
    model = layout.exported / "model"
    text = (model / "tokenizer.json").read_text()
    for one, other in (('"film"', '"@"'), ('"story"', '"film"'), ('"@"', '"story"')):
        text = text.replace(one, other)
    (model / "tokenizer.json").write_text(text)
    write_manifest(model)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [change_an_answer, break_the_tokenizer])
def test_other_answers_withdraw_the_version(exported: Layout, harm: Any) -> None:
    harm(exported)
    with pytest.raises(UserError, match="in a fresh process the model answers row") as caught:
        register.main(register_config(), RUNTIME, exported)
    assert len(str(caught.value).splitlines()) == 1
    store = client(exported)
    assert store.search_model_versions(f"name = '{NAME}'") == []
    assert store.search_registered_models() == []
    assert not exported.registered.exists()
    runs = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]


@pytest.mark.slow
def test_failed_version_leaves_the_alias_where_it_was(registered_once: Layout, tmp_path: Path) -> None:
    layout = Layout(Path(shutil.copytree(registered_once.root, tmp_path / "project")))
    before = folder_digests(layout.registered)
    break_the_tokenizer(layout)
    with pytest.raises(UserError):
        register.main(register_config(), RUNTIME, layout)
    store = client(layout)
    assert str(store.get_model_version_by_alias(NAME, "challenger").version) == "1"
    assert [str(version.version) for version in store.search_model_versions(f"name = '{NAME}'")] == ["1"]
    assert folder_digests(layout.registered) == before


def test_tampered_export_is_not_registered(exported: Layout) -> None:
    (exported.exported / "model/model.int8.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"model\.int8\.onnx"):
        register.main(register_config(), RUNTIME, exported)
    assert client(exported).search_registered_models() == []


def test_missing_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no exported model here"):
        register.main(register_config(), RUNTIME, Layout(tmp_path))


def test_server_that_is_down_registers_nothing(exported: Layout) -> None:
    runtime = RUNTIME.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(UserError, match="does not answer"):
        register.main(register_config(), runtime, exported)
    assert not exported.registered.exists()


@pytest.mark.slow
def test_fresh_process_that_cannot_load_is_told(exported: Layout) -> None:
    with pytest.raises(UserError, match="cannot load it"):
        client(exported)
        versions.check_in_fresh_process("models:/no-such-model/1", exported.exported / "examples.json")


@pytest.mark.parametrize(
    ("expected", "found", "equal"),
    [
        ({"label": "a", "p": 0.5}, {"label": "a", "p": 0.50005}, True),
        ({"label": "a", "p": 0.5}, {"label": "a", "p": 0.5002}, False),
        ({"label": "a"}, {"label": "b"}, False),
        ({"label": "a"}, {"label": "a", "p": 1.0}, False),
        ({"p": 0.5}, {"p": float("nan")}, False),
        ({"p": float("nan")}, {"p": float("nan")}, False),
        ({"tokens": [0.1, 0.2]}, {"tokens": [0.1, 0.2]}, True),
        ({"tokens": [0.1, 0.2]}, {"tokens": [0.1]}, False),
    ],
)
def test_sameness_of_answers(expected: Any, found: Any, equal: bool) -> None:
    assert fresh_process.answers_equal(expected, found) is equal


# -- stores ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_works_through_a_server(exported: Layout, tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "server") as address:
        runtime = RUNTIME.model_copy(update={"tracking_uri": address})
        register.main(register_config(), runtime, exported)
        assert read_json(exported.registered / "registered.json")["uri"] == f"models:/{NAME}/1"
        assert not (exported.root / "mlflow.db").exists()
        for damaged in (False, True):  # fetched once, then kept; fetched again where the copy is damaged
            if damaged:
                [graph] = (exported.state / "models").rglob("model.int8.onnx")
                graph.write_bytes(graph.read_bytes()[:-1])
            asked = ("predict", "great film", "--model", f"models:/{NAME}@challenger", "--json")
            done = textmill(*asked, cwd=exported.root, MLFLOW_TRACKING_URI=address)
            assert done.returncode == 0, done.stderr
    here = textmill("predict", "great film", "--json", cwd=exported.root)
    assert json.loads(done.stdout) == json.loads(here.stdout)
    kept = list((exported.state / "models").iterdir())
    assert [sha256_file(path / "textmill_manifest.json") for path in kept] == [path.name for path in kept]
    assert len(kept) == 1


@pytest.mark.slow
def test_interrupted_registration_leaves_nothing(exported: Layout) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from support.tiny_export import RUNTIME, register_config\n"
        "from textmill.config.layout import Layout\n"
        "from textmill.registry.versions import versions\n"
        "from textmill.stages import register\n"
        "from textmill.stages.runner import run_program\n"
        "def wait(uri, examples):\n"
        "    print(uri, flush=True)\n"
        "    import time; time.sleep(60)\n"
        "versions.check_in_fresh_process = wait\n"
        "run_program('register', lambda: register.main(register_config(), RUNTIME, Layout(Path(sys.argv[1]))))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    support = str(Path(__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(exported.root), support], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == f"models:/{NAME}/1".encode()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    store = client(exported)
    assert store.search_registered_models() == []
    runs = store.search_runs([store.get_experiment_by_name("tiny").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"]
