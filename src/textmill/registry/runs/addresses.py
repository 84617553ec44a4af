"""Resolve the short names of versions, runs and models that users type."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import read_json
from textmill.registry.runs.store import is_forbidden

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

RUN_ID = re.compile(r"[0-9a-f]{32}")
_SCHEME = "models:/"
FORMS = "NAME/VERSION or NAME@ALIAS, also after models:/; or a version or alias of this project's model"


def model_name(client: MlflowClient, layout: Layout) -> str:
    """Return the registered model of this project: as configured, as last registered, or the only one.

    Raises:
        UserError: The project names none, and the store has none or several.
    """
    from textmill.config import resolved

    if layout.resolved.is_file():
        return resolved.read(layout.resolved).registration.name
    note = layout.registered / "registered.json"
    if note.is_file():
        return str(read_json(note)["name"])
    names = [model.name for model in client.search_registered_models(max_results=20)]
    if len(names) != 1:
        known = ", ".join(names) or "none; run `dvc repro`"
        raise UserError("this project has no registered model", fix=f"Write NAME/VERSION; registered: {known}")
    return str(names[0])


def find_version(text: str, client: MlflowClient, layout: Layout) -> ModelVersion:
    """Return the version with this address.

    An address is `models:/NAME/VERSION`, `models:/NAME@ALIAS`, either without `models:/`, or a bare
    version number or alias of this project's model.

    Raises:
        UserError: The model, version or alias does not exist.
    """
    name, version, alias = parse_address(text)
    name = name or model_name(client, layout)
    from mlflow.exceptions import MlflowException

    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE") and not is_forbidden(error):
            raise
        raise UserError(
            f"{name} has no {'alias' if alias else 'version'} {alias or version}", where=text, fix=_known(client, name)
        ) from error


def require_model(client: MlflowClient, name: str) -> str:
    """Return the name of a registered model; raise UserError with the existing ones if there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and not is_forbidden(error):
            raise
        raise UserError("there is no such registered model", where=name, fix=_known_models(client)) from error
    return name


def require_run_id(version: ModelVersion) -> str:
    """Return the id of the run that created a version; raise UserError if it names none."""
    if not version.run_id:
        raise UserError(f"{version.name} version {version.version} names no run", fix="Register it with `dvc repro`")
    return str(version.run_id)


def find_run(text: str, client: MlflowClient) -> Run | None:
    """Return the run with this id, or None if `text` is not a run id.

    Raises:
        UserError: The run does not exist.
    """
    from mlflow.exceptions import MlflowException

    if not RUN_ID.fullmatch(text):
        return None
    try:
        return client.get_run(text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and not is_forbidden(error):
            raise
        raise UserError("no such run", where=text, fix="See `mlflow ui` or `dvc exp show`") from error


def parse_address(text: str) -> tuple[str, str, str]:
    """Split an address into name (empty for this project's model), version and alias; one of the last two is empty."""
    bare = text.removeprefix(_SCHEME)
    name, at, alias = bare.rpartition("@")
    if at:
        version = ""
    else:
        name, _, last = bare.rpartition("/")
        version, alias = (last, "") if last.isdigit() else ("", last)
        if name and alias:
            name = alias = ""
    if not (version or alias) or (text.startswith(_SCHEME) and not name):
        raise UserError("not the address of a version", where=text or '""', fix=f"Use {FORMS}")
    return name, version, alias


def _known(client: MlflowClient, name: str) -> str:
    """Describe the existing versions, or else the existing models."""
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        return _known_models(client)
    aliases = client.get_registered_model(name).aliases
    shown = [
        " ".join([str(number), *(f"@{alias}" for alias, version in sorted(aliases.items()) if int(version) == number)])
        for number in sorted(int(version.version) for version in versions)[-10:]
    ]
    return f"Versions: {', '.join(shown)}"


def _known_models(client: MlflowClient) -> str:
    models = ", ".join(sorted(model.name for model in client.search_registered_models(max_results=20)))
    return f"Registered models: {models or 'none; run `dvc repro`'}"
