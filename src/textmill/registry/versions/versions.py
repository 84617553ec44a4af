"""Versions of a registered model: log, register, check and fetch them."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import SEEN_FILE, START, Layout
from textmill.config.plugins import TARGET
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.files import read_json, read_optional, sha256_file
from textmill.predicting.exported import MANIFEST_FILE, TamperedError, read_specification, verify
from textmill.registry.runs import descriptions
from textmill.registry.runs.addresses import find_version
from textmill.registry.runs.origin import PREFIX, origin_tags, upstream_lock_digest
from textmill.registry.runs.store import open_client, tracking_errors
from textmill.registry.versions.trial import delete_version, is_untried, mark_tried, remove_leftovers, trial_tag
from textmill.registry.versions.version_files import VERSION_MANIFEST, SealedPyfunc, fetch_folder
from textmill.tasks.abilities import ContinuesText, GeneratesText
from textmill.tasks.base import Task

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ARTIFACT = "exported"

log = logging.getLogger("textmill")

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
"""Aliases of registered versions."""
_SEEN = "seen"
_HERE = Path(__file__).parent
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "onnxruntime", "tokenizers", "pydantic", "ftfy")
_GENERATION_REQUIREMENTS = ("torch", "safetensors", "transformers")
_FRESH_PROCESS_SECONDS = 300


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: str
    alias: str
    run_id: str
    uri: str


def register(name: str, folder: Path, examples: Path, run_id: str, layout: Layout) -> RegisteredVersion:
    """Register an exported folder as a new version, and check it in a fresh process.

    A folder already registered from the same run keeps its version. `examples` is `examples.json` with
    inputs and expected answers. What an interrupted registration left is completed or removed.

    Raises:
        UserError: The folder was changed after export, the store refuses, or answers differ in a fresh
            process. Then no new version remains.
    """
    import mlflow

    verify(folder)
    client = mlflow.MlflowClient()
    tags = version_tags(folder, run_id, layout)
    with tracking_errors(mlflow.get_tracking_uri()):
        version = _same_version(client, name, tags)
        created = version is None or is_untried(version)
        remove_leftovers(client, name, [client.get_run(run_id).info.experiment_id], keep=version)
        if version is None:
            if f"{PREFIX}seen_sha256" in tags:
                client.log_artifact(run_id, str(layout.exported / SEEN_FILE), _SEEN)
            version = _create(client, name, folder, run_id, tags, read_optional(layout.evaluation / "metrics.json"))
        uri = f"models:/{name}/{version.version}"
        try:
            check_in_fresh_process(uri, examples)
        except BaseException:
            if created:
                delete_version(client, version)
            raise
        if created:
            mark_tried(client, version)
    return RegisteredVersion(name, str(version.version), CHALLENGER, run_id, uri)


def version_tags(folder: Path, run_id: str, layout: Layout) -> dict[str, str]:
    """Return the tags of a version: digests of manifest, weights, data and lock, run id and git commit."""
    provenance = read_json(folder / "provenance.json")
    origin = origin_tags(layout.root)
    kept = ("git_commit", "git_dirty", "environment_sha256")
    tags = {f"{PREFIX}{name}": origin[f"{PREFIX}{name}"] for name in kept if f"{PREFIX}{name}" in origin}
    tags |= {
        f"{PREFIX}run_id": run_id,
        f"{PREFIX}manifest_sha256": sha256_file(folder / MANIFEST_FILE),
        f"{PREFIX}weights_sha256": provenance["trained"],
    }
    if (record := layout.exported / SEEN_FILE).is_file():
        tags[f"{PREFIX}seen_sha256"] = sha256_file(record)
    tags |= {f"{PREFIX}data.{split}_sha256": digest for split, digest in provenance["prepared"].items()}
    if precision := read_specification(folder).precision:
        tags[f"{PREFIX}precision"] = precision
    if corpus := provenance["corpus"].get("sha256"):
        tags[f"{PREFIX}data.corpus_sha256"] = corpus
    if teacher := provenance["corpus"].get("teacher"):
        tags[f"{PREFIX}teacher"] = "/".join(filter(None, (teacher["origin"], teacher["version"])))
        tags[f"{PREFIX}data.teacher_sha256"] = teacher["sha256"]
    if start := provenance.get(START):
        tags[f"{PREFIX}started_from"] = f"{start['origin']}/{start['version']}"
        tags[f"{PREFIX}data.start_sha256"] = start["sha256"]
    if lock := upstream_lock_digest(layout.root, "register"):
        tags[f"{PREFIX}dvc_lock_upstream_sha256"] = lock
    return tags


def check_in_fresh_process(uri: str, examples: Path) -> None:
    """Load the version in a process of its own and compare its answers with the stored ones.

    Raises:
        UserError: It cannot be loaded, or its answers differ.
    """
    fix = "The version was withdrawn. Run `dvc repro --force export`"
    command = [sys.executable, "-P", str(_HERE / "fresh_process.py"), uri, str(examples)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "TQDM_DISABLE": "1"}
    environment["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_FRESH_PROCESS_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"a fresh process did not load it in {_FRESH_PROCESS_SECONDS} s", where=uri, fix=fix) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"a fresh process cannot load it: {last[:300]}", where=uri, fix=fix)
    problem = json.loads(done.stdout.strip().splitlines()[-1])["problem"]
    if problem:
        raise UserError(f"in a fresh process the model {problem}", where=uri, fix=fix)


def download(uri: str, layout: Layout) -> Path:
    """Return the exported folder of the version at an address; see `addresses.find_version`.

    A remote version is downloaded once, into the project's state.

    Raises:
        UserError: The version does not exist, or the store cannot be reached.
    """
    with open_client(RuntimeConfig(tracking_uri=configured_uri(layout)), layout) as client:
        return fetch_folder(find_version(uri, client, layout), layout)


def seen_record(version: ModelVersion) -> Path | None:
    """Return the record of the rows that a version was made with; None for versions before 27 November 2026.

    Raises:
        TamperedError: The record is not the registered one.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    digest = version.tags.get(f"{PREFIX}seen_sha256")
    if digest is None:
        return None
    address = f"runs:/{version.tags.get(f'{PREFIX}run_id') or version.run_id}/{_SEEN}/{SEEN_FILE}"
    try:
        record = Path(mlflow.artifacts.download_artifacts(artifact_uri=address))
    except (MlflowException, OSError):
        return None
    if sha256_file(record) != digest:
        fix = "Restore it from a backup, or register the model again"
        raise TamperedError("the record of seen rows differs from the registered one", where=address, fix=fix)
    return record


def configured_uri(layout: Layout) -> str | None:
    """Return `runtime.tracking_uri` of the last composed configuration, or None."""
    from textmill.config import resolved

    return resolved.read(layout.resolved).runtime.tracking_uri if layout.resolved.is_file() else None


def _same_version(client: MlflowClient, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """Return the latest version with the same content and run, or None."""
    keys = (f"{PREFIX}run_id", f"{PREFIX}manifest_sha256")
    versions = client.search_model_versions(f"name = '{name}'")
    same = [version for version in versions if all(version.tags.get(key) == tags[key] for key in keys)]
    return max(same, key=lambda version: int(version.version), default=None)


@contextmanager
def _without_links(folder: Path) -> Iterator[Path]:
    """Yield the folder, or a copy if DVC's cache gave it symbolic links, which MLflow refuses to follow."""
    if not any(path.is_symlink() for path in folder.rglob("*")):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(shutil.copytree(folder, Path(temporary) / folder.name))


def _create(
    client: MlflowClient, name: str, folder: Path, run_id: str, tags: dict[str, str], metrics: Mapping[str, Any]
) -> ModelVersion:
    """Log the folder as a pyfunc of the run and register it."""
    import mlflow
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, infer_signature
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
    from mlflow.types import ColSpec, DataType, Schema

    exported = read_specification(folder)
    task = Task.build(exported.task)
    example = pd.DataFrame(task.example_inputs())
    from textmill.predicting.loading import load_predictor

    answers = pd.DataFrame.from_records(load_predictor(folder).predict(task.example_inputs()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer column")
        signature = infer_signature(example, answers)
    if len(example.columns) == 1:
        # A list of texts reaches MLflow's check as a frame with the column 0. Unnamed columns would accept any frame.
        text = ColSpec(DataType.string, example.columns[0], required=False)
        first: Any = 0
        signature.inputs = Schema([ColSpec(DataType.string, first, required=False), text])
    mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
    flavor = SealedPyfunc(name)
    with _without_links(folder) as plain, _stored_code(exported.task) as code_paths:
        logged = Model.log(
            artifact_path=None,
            name=re.sub(r"[^A-Za-z0-9_-]", "-", name),  # MLflow allows no other characters here
            flavor=flavor,
            flavor_name="mlflow.pyfunc",
            run_id=run_id,
            python_model=str(_HERE / "served_model.py"),
            artifacts={ARTIFACT: plain.absolute().as_uri()},  # MLflow decodes a path as if it were an address
            code_paths=code_paths,
            signature=signature,
            input_example=example,
            pip_requirements=requirements(exported.task),
            tags=trial_tag(),
            validate_serving_input=False,  # a fresh process compares the answers
        )
    try:
        client.create_registered_model(name, description=descriptions.model_description(task.name))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    return client.create_model_version(
        name,
        logged.model_uri,
        run_id=run_id,
        tags={**tags, **trial_tag(), PREFIX + VERSION_MANIFEST: flavor.digest},
        description=descriptions.version_description(metrics),
        model_id=logged.model_id,
    )


@contextmanager
def _stored_code(task: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the code to store with a model: Textmill as one archive, the task's package unless it is a distribution.

    A server stores some 350 files one by one, which takes minutes.
    """
    package = str(task[TARGET]).split(".", 1)[0]
    others = [] if package == "textmill" or _is_distribution(package) else [str(_source(package))]
    source = _source("textmill")
    files = (path for path in sorted(source.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    with tempfile.TemporaryDirectory() as temporary:
        archive = Path(temporary) / "textmill.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as code:
            for path in files:  # ZipInfo has a fixed date, so that equal code gives equal archives
                name = zipfile.ZipInfo(f"textmill/{path.relative_to(source).as_posix()}")
                code.writestr(name, path.read_bytes(), zipfile.ZIP_DEFLATED)
        yield [str(archive), *others]


def requirements(task: Mapping[str, Any]) -> list[str]:
    """Return the pinned distributions that the model needs to answer."""
    needed = list(_REQUIREMENTS)
    package = str(task[TARGET]).split(".", 1)[0]
    if issubclass(Task.find(str(task[TARGET])), ContinuesText | GeneratesText):
        needed += _GENERATION_REQUIREMENTS
    if _is_distribution(package):
        needed.append(metadata.packages_distributions()[package][0])
    return [f"{name}=={metadata.version(name)}" for name in needed]


def _is_distribution(package: str) -> bool:
    """Return whether a package is an installed distribution; Textmill itself is always stored as source."""
    return package != "textmill" and package in metadata.packages_distributions()


def _source(package: str) -> Path:
    module = importlib.import_module(package)
    folders = list(getattr(module, "__path__", ()))  # also of a package without `__init__.py`
    return Path(folders[0] if folders else str(module.__file__))
