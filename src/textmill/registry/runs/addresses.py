"""Which version of which model a user means by a few characters."""

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

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_SCHEME = "models:/"
FORMS = "NAME/VERSION, NAME@ALIAS, or a bare version or alias of this project's model"


def model_name(client: MlflowClient, layout: Layout) -> str:
    """The registered model of this project: as configured, as last registered, or the only one there is.

    Raises:
        UserError: The project names none and the store has none or several.
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
        raise UserError("this project names no registered model", fix=f"Write NAME/VERSION; registered: {known}")
    return str(names[0])


def find_version(text: str, client: MlflowClient, layout: Layout) -> ModelVersion:
    """The version that `text` names.

    Args:
        text: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, the same without `models:/`, or a bare
            version number or alias of this project's model.
        client: Of an open store.
        layout: The project.

    Raises:
        UserError: There is no such model, version or alias.
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


def run_id_of(version: ModelVersion) -> str:
    """The run that made a version.

    Raises:
        UserError: The version names none.
    """
    if not version.run_id:
        raise UserError(f"{version.name} version {version.version} names no run", fix="Register it with `dvc repro`")
    return str(version.run_id)


def find_run(text: str, client: MlflowClient) -> Run | None:
    """The run with this id; None when `text` has not the form of a run's id.

    Raises:
        UserError: There is no such run.
    """
    from mlflow.exceptions import MlflowException

    if not _RUN_ID.fullmatch(text):
        return None
    try:
        return client.get_run(text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and not is_forbidden(error):
            raise
        raise UserError("there is no such run", where=text, fix="Look at `mlflow ui` or `dvc exp show`") from error


def parse_address(text: str) -> tuple[str, str, str]:
    """Name (empty for this project's), version and alias; one of the last two is empty."""
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
        raise UserError("not the address of a version", where=text or '""', fix=f"Write {FORMS}")
    return name, version, alias


def _known(client: MlflowClient, name: str) -> str:
    """What there is instead."""
    found = client.search_model_versions(f"name = '{name}'")
    if not found:
        models = ", ".join(sorted(model.name for model in client.search_registered_models(max_results=20)))
        return f"Registered models: {models or 'none; run `dvc repro`'}"
    aliases = client.get_registered_model(name).aliases
    shown = [
        " ".join([str(number), *(f"@{alias}" for alias, version in sorted(aliases.items()) if int(version) == number)])
        for number in sorted(int(version.version) for version in found)[-10:]
    ]
    return f"Versions: {', '.join(shown)}"
