"""Versions of a registered model: logging, registering, trying out, fetching."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.config.plugins import TARGET
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.files import read_json, sha256_file
from textmill.predicting.exported import MANIFEST_FILE, read_specification, verify, verify_registered
from textmill.registry.runs import descriptions
from textmill.registry.runs.addresses import find_version
from textmill.registry.runs.origin import PREFIX, origin_tags, upstream_lock_digest
from textmill.registry.runs.store import open_store, tracking_errors
from textmill.tasks.abilities import ContinuesText, GeneratesText
from textmill.tasks.base import Task

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ARTIFACT = "exported"

log = logging.getLogger("textmill")

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
"""Aliases of registered versions."""
_HERE = Path(__file__).parent
_NEEDED_TO_SERVE = ("mlflow", "numpy", "pandas", "onnxruntime", "tokenizers", "pydantic", "ftfy")
_NEEDED_TO_GENERATE = ("torch", "safetensors", "transformers")
_FRESH_PROCESS_SECONDS = 300


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    alias: str
    run_id: str
    uri: str


def register(name: str, folder: Path, examples: Path, run_id: str, layout: Layout) -> Registered:
    """Register an exported folder as a new version, try it in a fresh process, make it the challenger.

    The same folder of the same run is not registered twice.

    Args:
        name: Of the registered model.
        folder: The exported model.
        examples: `examples.json` with rows and the answers that must come.
        run_id: The MLflow run that made it.
        layout: The project.

    Raises:
        UserError: The folder was tampered with, the store refuses, or a fresh process answers
            otherwise; then neither a new version nor a moved alias is left.
    """
    import mlflow

    verify(folder)
    client = mlflow.MlflowClient()
    tags = version_tags(folder, run_id, layout)
    with tracking_errors(mlflow.get_tracking_uri()):
        version = _same_version(client, name, tags)
        made = version is None
        if version is None:
            version = _create(client, name, folder, run_id, tags, _metrics(layout))
        uri = f"models:/{name}/{version.version}"
        try:
            try_in_fresh_process(uri, examples)
        except BaseException:
            if made:
                _delete(client, version)
            raise
        client.set_registered_model_alias(name, CHALLENGER, version.version)
    return Registered(name, str(version.version), CHALLENGER, run_id, uri)


def version_tags(folder: Path, run_id: str, layout: Layout) -> dict[str, str]:
    """What leads from a version back to run, commit, data and lock."""
    provenance = read_json(folder / "provenance.json")
    origin = origin_tags(layout.root)
    kept = ("git_commit", "git_dirty", "environment_sha256")
    tags = {f"{PREFIX}{name}": origin[f"{PREFIX}{name}"] for name in kept if f"{PREFIX}{name}" in origin}
    tags |= {
        f"{PREFIX}run_id": run_id,
        f"{PREFIX}manifest_sha256": sha256_file(folder / MANIFEST_FILE),
        f"{PREFIX}weights_sha256": provenance["trained"],
    }
    tags |= {f"{PREFIX}data.{split}_sha256": digest for split, digest in provenance["prepared"].items()}
    if corpus := provenance["corpus"].get("sha256"):
        tags[f"{PREFIX}data.corpus_sha256"] = corpus
    if lock := upstream_lock_digest(layout.root, "register"):
        tags[f"{PREFIX}dvc_lock_upstream_sha256"] = lock
    return tags


def try_in_fresh_process(uri: str, examples: Path) -> None:
    """Load the version in a process that knows nothing but MLflow, and compare its answers.

    Raises:
        UserError: It cannot be loaded there, or answers otherwise.
    """
    fix = "The version is withdrawn; run `dvc repro --force export` and look at the message above"
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
        raise UserError(f"in a fresh process it {problem}", where=uri, fix=fix)


def download(uri: str, layout: Layout) -> Path:
    """The exported folder of a version, named as in `addresses.find_version`.

    From a remote store it is fetched once, into the project's local state.

    Raises:
        UserError: There is no such version, or the store cannot be reached.
    """
    open_store(RuntimeConfig(tracking_uri=configured_uri(layout)), layout)
    import mlflow

    with tracking_errors(mlflow.get_tracking_uri()):
        return folder_of(find_version(uri, mlflow.MlflowClient(), layout), layout)


def folder_of(version: ModelVersion, layout: Layout, *, fresh: bool = False) -> Path:
    """The exported folder of a version; from a remote store fetched once, or anew when `fresh`.

    Its manifest is held against the registry's digest, the other files against it by whoever loads them.

    Raises:
        UserError: The manifest is missing or not the one that was registered.
    """
    import mlflow

    from textmill.files import atomic_folder

    source = f"models:/{version.name}/{version.version}"
    flavor = mlflow.models.get_model_info(source).flavors["python_function"]
    source += "/" + flavor["artifacts"][ARTIFACT]["path"]
    digest = version.tags.get(f"{PREFIX}manifest_sha256")
    if mlflow.get_tracking_uri().startswith("sqlite:"):
        found = Path(mlflow.artifacts.download_artifacts(artifact_uri=source))
    else:
        kept = layout.state / "models" / str(digest)
        if fresh or not kept.is_dir():
            with atomic_folder(kept) as folder:
                mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder))
        found = next((path.parent for path in kept.rglob(MANIFEST_FILE)), kept)
    verify_registered(found, digest)
    return found


def configured_uri(layout: Layout) -> str | None:
    """`runtime.tracking_uri` of the last composed configuration, if there is one."""
    from textmill.config import resolved

    return resolved.read(layout.resolved).runtime.tracking_uri if layout.resolved.is_file() else None


def _same_version(client: MlflowClient, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """The latest version with the same content and run, if any."""
    found = client.search_model_versions(f"name = '{name}'")
    same = (f"{PREFIX}run_id", f"{PREFIX}manifest_sha256")
    matching = [version for version in found if all(version.tags.get(key) == tags[key] for key in same)]
    return max(matching, key=lambda version: int(version.version), default=None)


def _metrics(layout: Layout) -> dict[str, Any]:
    path = layout.evaluation / "metrics.json"
    return dict(read_json(path)) if path.is_file() else {}


def _create(
    client: MlflowClient, name: str, folder: Path, run_id: str, tags: dict[str, str], metrics: Mapping[str, Any]
) -> ModelVersion:
    """Log the folder as a pyfunc of the run and register it."""
    import mlflow
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, infer_signature
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    exported = read_specification(folder)
    task = Task.build(exported.task)
    example = pd.DataFrame(task.example_inputs())
    from textmill.predicting.loading import load_predictor

    answers = pd.DataFrame.from_records(load_predictor(folder).predict(task.example_inputs()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer column")
        signature = infer_signature(example, answers)
    mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
    logged = Model.log(
        artifact_path=None,
        name=re.sub(r"[^A-Za-z0-9_-]", "-", name),  # as MLflow's lists of models show it
        flavor=mlflow.pyfunc,
        run_id=run_id,
        python_model=str(_HERE / "served_model.py"),
        artifacts={ARTIFACT: str(folder)},
        code_paths=code_paths(exported.task),
        signature=signature,
        input_example=example,
        pip_requirements=requirements(exported.task),
    )
    try:
        client.create_registered_model(name, description=descriptions.registered_model(task.name))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    return client.create_model_version(
        name,
        logged.model_uri,
        run_id=run_id,
        tags=tags,
        description=descriptions.version(metrics),
        model_id=logged.model_id,
    )


def code_paths(task: Mapping[str, Any]) -> list[str]:
    """The packages whose source a model needs: Textmill, and that of a task from elsewhere."""
    package = str(task[TARGET]).split(".", 1)[0]
    return [str(_source(name)) for name in dict.fromkeys(("textmill", package)) if not _is_distribution(name)]


def requirements(task: Mapping[str, Any]) -> list[str]:
    """Pinned distributions that answering needs, and no others."""
    needed = list(_NEEDED_TO_SERVE)
    package = str(task[TARGET]).split(".", 1)[0]
    if issubclass(Task.find(str(task[TARGET])), ContinuesText | GeneratesText):
        needed += _NEEDED_TO_GENERATE
    if _is_distribution(package):
        needed.append(metadata.packages_distributions()[package][0])
    return [f"{name}=={metadata.version(name)}" for name in needed]


def _is_distribution(package: str) -> bool:
    """Whether a package can be had from the index; Textmill itself is never taken from there."""
    return package != "textmill" and package in metadata.packages_distributions()


def _source(package: str) -> Path:
    module = importlib.import_module(package)
    file = Path(str(module.__file__))
    return file.parent if file.name == "__init__.py" else file


def _delete(client: MlflowClient, version: ModelVersion) -> None:
    """Take back a version that did not stand the test; a registered model without versions goes too."""
    client.delete_model_version(version.name, version.version)
    client.delete_logged_model(str(version.source).removeprefix("models:/"))
    if not client.search_model_versions(f"name = '{version.name}'"):
        client.delete_registered_model(version.name)
