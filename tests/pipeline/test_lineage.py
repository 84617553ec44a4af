"""Lineage of a version that a whole pipeline run made: told, checked, and each link broken in turn."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.project import Project
from support.tiny_export import RUNTIME, build_evaluated_project, export_config, mlflow_server, register_config
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config.layout import Layout
from textmill.registry.lineage.lineage import Origin, find_origin
from textmill.registry.lineage.verification import verify_origin

pytestmark = pytest.mark.slow

NAME = "tiny-reviews"


@pytest.fixture(scope="module")
def built(built_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The built project itself, for its store names its own folders; every test puts back what it changes."""
    yield built_project
    assert statuses(built_project) == dict.fromkeys(statuses(built_project), "holds")


@pytest.fixture
def in_project(built: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(built.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return built


def origin(project: Project) -> Origin:
    return find_origin(f"{NAME}/1", Layout(project.root))


def statuses(project: Project) -> dict[str, str]:
    return {link.name: link.status for link in verify_origin(origin(project))}


def detail(project: Project, name: str, status: str = "broken") -> str:
    """What is said of a link, which must have this status."""
    link = next(link for link in verify_origin(origin(project)) if link.name == name)
    assert link.status == status, link
    return link.detail


def textmill(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def model_folder() -> Path:
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{NAME}/1"))


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """A file with other content, or without one, for a while."""
    kept, mode = path.read_bytes(), path.stat().st_mode
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        path.write_bytes(kept)
        path.chmod(mode)


@contextmanager
def tagged(key: str, value: str) -> Iterator[None]:
    """The version with another tag for a while."""
    import mlflow

    client = mlflow.MlflowClient()
    kept = client.get_model_version(NAME, "1").tags[key]
    client.set_model_version_tag(NAME, "1", key, value)
    try:
        yield
    finally:
        client.set_model_version_tag(NAME, "1", key, kept)


# -- lineage ---------------------------------------------------------------------------------


def test_chain_leads_from_version_to_environment(in_project: Project) -> None:
    parts = json.loads(textmill("lineage", "challenger", "--json").stdout)
    assert list(parts) == ["version", "run", "commit", "lock", "data", "environment"]
    first, results = in_project.run("git", "log", "--format=%H", "--reverse").stdout.split()
    assert (parts["version"]["name"], parts["version"]["version"]) == (NAME, "1")
    assert parts["version"]["aliases"] == ["challenger"]
    assert parts["run"]["status"] == "FINISHED"
    assert list(parts["run"]["stages"]) == ["evaluate", "export", "register", "train"]
    assert (parts["commit"]["commit"], parts["commit"]["subject"]) == (first, "A tiny project")
    assert parts["lock"]["found_in"] == f"commit {results[:12]}"
    assert "data/trained" in parts["lock"]["outputs"]
    assert set(parts["data"]) == {"corpus", "test", "train", "validation"}
    assert parts["environment"]["python"]


def test_tree_reads_from_the_version_inwards(in_project: Project) -> None:
    shown = textmill("lineage", f"{NAME}/1")
    assert shown.exit_code == 0
    order = ["version", "made by run", "at git commit", "with dvc.lock", "from data", "in environment"]
    places = [shown.stdout.index(title) for title in order]
    assert places == sorted(places)


@pytest.mark.parametrize("address", ["1", "challenger", f"models:/{NAME}@challenger", f"models:/{NAME}/1"])
def test_address_may_be_short(in_project: Project, address: str) -> None:
    assert find_origin(address, Layout(in_project.root)).name == f"{NAME}/1"


@pytest.mark.parametrize("verb", ["lineage", "verify", "card", "reproduce"])
def test_unknown_version_is_told_in_one_line(in_project: Project, verb: str) -> None:
    done = in_project.run("textmill", verb, "99", check=False)
    assert done.returncode == 1
    assert "has no version 99" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_lock_that_was_never_committed_is_the_runs_own(in_project: Project) -> None:
    with changed(in_project.root / "dvc.lock", None):
        found = origin(in_project)
        first = in_project.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.strip()
        found.repository.__dict__["find_lock"] = lambda *_: None
        assert found.lock is not None
        assert found.lock.where == "the artifacts of the run"
        assert found.commit == first


# -- verify ----------------------------------------------------------------------------------


def test_every_link_of_a_sound_version_holds(in_project: Project) -> None:
    done = textmill("verify", "1", "--json")
    found = json.loads(done.stdout)
    assert {link["status"] for link in found["links"]} == {"holds"}, found
    assert (done.exit_code, found["verdict"]) == (0, "holds")
    assert [link["name"] for link in found["links"]] == [
        *("artifact", "run", "commit", "code", "dvc.lock", "inputs", "data", "environment")
    ]


def test_tampered_artefact_is_refused_and_named(in_project: Project) -> None:
    origin(in_project)
    with changed(model_folder() / "artifacts/model/model.int8.onnx", b"x"):
        done = textmill("verify", "1")
        assert done.exit_code == 3
        assert "model.int8.onnx" in "".join(done.stdout.split())
        assert "digest differs" in " ".join(done.stdout.split())


def test_pickle_in_place_of_safetensors_is_refused_and_named(in_project: Project) -> None:
    origin(in_project)
    weights = model_folder() / "artifacts/model/model.safetensors"
    pickle = weights.with_name("pytorch_model.bin")
    with changed(weights, None):
        pickle.write_bytes(b"\x80\x04.")
        try:
            said = detail(in_project, "artifact")
        finally:
            pickle.unlink()
    assert "pytorch_model.bin: a pickle" in said


def test_forged_manifest_is_not_the_registered_one(in_project: Project) -> None:
    from textmill.predicting.exported import write_manifest

    origin(in_project)
    folder = model_folder() / "artifacts/model"
    manifest = folder / "manifest.json"
    with changed(folder / "README.md", b"another card"), changed(manifest, manifest.read_bytes()):
        write_manifest(folder)
        assert f"{manifest}: the file was changed after the registration" in detail(in_project, "artifact")


def test_missing_artefact_is_broken(in_project: Project) -> None:
    origin(in_project)
    folder = model_folder()
    away = folder.rename(folder.with_name("away"))
    try:
        assert statuses(in_project)["artifact"] == "broken"
    finally:
        if folder.exists():
            shutil.rmtree(folder)
        away.rename(folder)


def test_deleted_run_is_broken(in_project: Project) -> None:
    import mlflow

    run_id = origin(in_project).run_id
    client = mlflow.MlflowClient()
    client.delete_run(run_id)
    try:
        assert run_id in detail(in_project, "run")
    finally:
        client.restore_run(run_id)


def test_commit_that_is_not_here_is_broken(in_project: Project) -> None:
    origin(in_project)
    with tagged("textmill.git_commit", "f" * 40):
        assert "is not in this repository" in detail(in_project, "commit")


def test_uncommitted_changes_are_found_in_a_later_commit_or_told(in_project: Project) -> None:
    origin(in_project)
    with tagged("textmill.git_dirty", "true"):
        assert "committed later as" in detail(in_project, "commit", "holds")
        with tagged("textmill.dvc_lock_upstream_sha256", "0" * 64):
            assert "uncommitted changes" in detail(in_project, "commit", "unchecked")


def test_code_that_is_not_the_commits_is_broken(in_project: Project) -> None:
    origin(in_project)
    archive = model_folder() / "code/textmill.zip"
    other = io.BytesIO()
    with zipfile.ZipFile(archive) as code, zipfile.ZipFile(other, "w") as copy:
        for name in code.namelist():
            copy.writestr(name, b"# another\n" if name == "textmill/errors.py" else code.read(name))
    with changed(archive, other.getvalue()):
        assert "code/textmill.zip/errors.py differs from the commit" in detail(in_project, "code")


def test_lock_that_is_nowhere_is_broken(in_project: Project) -> None:
    origin(in_project)
    with tagged("textmill.dvc_lock_upstream_sha256", "0" * 64):
        found = statuses(in_project)
        assert found["dvc.lock"] == "broken"
        assert found["data"] == "unchecked"


def test_inputs_that_the_lock_does_not_name_are_broken(in_project: Project) -> None:
    experiment = in_project.root / "conf/experiment/tiny.yaml"
    with changed(experiment, experiment.read_bytes() + b"seed: 1\n"):
        other = in_project.run("git", "stash", "create").stdout.strip()
    with tagged("textmill.git_commit", other):
        assert detail(in_project, "inputs").startswith("conf of")


def cached(project: Project, path: str) -> Path:
    """An object of an output in the DVC cache."""
    from textmill.registry.lineage.dvc_cache import Cache

    lock = origin(project).lock
    assert lock is not None
    found = Cache.of(project.root).file_in(lock.outputs["data/trained"], path)
    assert found is not None
    return found


def test_data_that_left_the_cache_is_broken_or_may_be_pulled(in_project: Project) -> None:
    with changed(cached(in_project, "metrics.json"), None):
        assert "data/trained/metrics.json is not in the cache" in detail(in_project, "data")
        in_project.run("dvc", "remote", "add", "--local", "--default", "store", "/nowhere")
        try:
            assert "dvc pull" in detail(in_project, "data", "unchecked")
            assert textmill("verify", "1").exit_code == 4
        finally:
            in_project.run("dvc", "remote", "remove", "--local", "store")


def test_data_changed_in_the_cache_is_broken(in_project: Project) -> None:
    with changed(cached(in_project, "metrics.json"), b"{}"):
        assert "data/trained/metrics.json was changed in the cache" in detail(in_project, "data")


@pytest.mark.parametrize(("tag", "names"), [("data.train", "the train in"), ("weights", "the weights in")])
def test_other_data_than_the_version_names_is_broken(in_project: Project, tag: str, names: str) -> None:
    origin(in_project)
    with tagged(f"textmill.{tag}_sha256", "0" * 64):
        assert names in detail(in_project, "data")


def test_environment_that_differs_names_the_package(in_project: Project) -> None:
    import mlflow

    found = origin(in_project)
    assert found.run is not None
    listing = Path(found.run.info.artifact_uri.removeprefix("file://")) / "environment/requirements.txt"
    lines = listing.read_text().splitlines(keepends=True)
    other = "".join("torch==0.1\n" if line.startswith("torch==") else line for line in lines)
    with changed(listing, other.encode()):
        assert "differs from its recorded digest" in detail(in_project, "environment")
        client = mlflow.MlflowClient()
        kept = found.run_tag("environment_sha256")
        client.set_tag(found.run_id, "textmill.environment_sha256", hashlib.sha256(other.encode()).hexdigest())
        try:
            assert "torch 0.1 ->" in detail(in_project, "environment")
        finally:
            client.set_tag(found.run_id, "textmill.environment_sha256", kept)


def test_fault_of_a_check_is_an_answer(in_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> object:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("textmill.registry.lineage.dvc_cache.Cache.of", fails)
    assert detail(in_project, "data", "unchecked") == "RuntimeError: no such luck"


def test_through_a_server_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be known there is checked, the rest is said to be unchecked."""
    from textmill.stages import export, register

    layout = build_evaluated_project(tmp_path / "project")
    project = Project(layout.root)
    export.main(export_config(), RUNTIME, layout)
    with mlflow_server(tmp_path / "server") as address:
        register.main(register_config(), RUNTIME.model_copy(update={"tracking_uri": address}), layout)
        store = {"MLFLOW_TRACKING_URI": address}
        parts = json.loads(project.run("textmill", "lineage", f"{NAME}/1", "--json", env=store).stdout)
        done = project.run("textmill", "verify", f"{NAME}/1", "--json", env=store, check=False)
        card = project.run("textmill", "card", f"{NAME}/1", env=store).stdout
    assert parts["version"]["store"] == address
    status = {link["name"]: link["status"] for link in json.loads(done.stdout)["links"]}
    assert done.returncode == 4, done.stdout
    assert {name for name, value in status.items() if value == "broken"} == set()
    assert {name for name, value in status.items() if value == "holds"} == {"artifact", "run", "environment"}
    assert "# Tiny reviews" in card
