"""Which version of which registered model is meant: addresses as people write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.files import read_json
from textmill.registry.store import open_store, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_SCHEME = "models:/"
_FORMS = "Write NAME/VERSION, models:/NAME/VERSION, models:/NAME@ALIAS, or the version or alias alone"


@dataclass(frozen=True)
class Address:
    """A version by number or by alias (one of the two is empty), of a model whose name may be left out."""

    name: str
    version: str
    alias: str


def parse(text: str) -> Address:
    """What an address says: `NAME/VERSION`, `NAME@ALIAS`, both also after `models:/`; `VERSION` or `ALIAS` alone.

    Raises:
        UserError: It is none of these.
    """
    bare = text.removeprefix(_SCHEME)
    name, at, alias = bare.partition("@")
    if at and alias and "/" not in alias:
        return Address(name, "", alias)
    name, slash, version = bare.rpartition("/")
    if slash and name and version.isdigit():
        return Address(name, version, "")
    if bare and bare == text and not slash and not at:
        return Address("", bare, "") if bare.isdigit() else Address("", "", bare)
    raise UserError("not the address of a version", where=text, fix=_FORMS)


def find_version(text: str, layout: Layout) -> ModelVersion:
    """The version that an address means, with its tags and aliases. Opens the store.

    Raises:
        UserError: There is no such version, the model's name is not clear, or the store cannot be
            reached.
    """
    address = parse(text)
    open_store(RuntimeConfig(tracking_uri=configured_uri(layout)), layout)
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    client = mlflow.MlflowClient()
    store = mlflow.get_tracking_uri()
    with tracking_errors(store):
        name = address.name or _only_name(client, text, layout)
        try:
            number = address.version or client.get_model_version_by_alias(name, address.alias).version
            return client.get_model_version(name, str(number))  # one asked for by alias comes without its aliases
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST) or "not found" in str(error):
                raise UserError(f"no such version in {store}", where=text, fix=_known(client)) from error
            raise


def configured_uri(layout: Layout) -> str | None:
    """`runtime.tracking_uri` of the last composed configuration, if there is one."""
    from textmill.config import resolved

    return resolved.read(layout.resolved).runtime.tracking_uri if layout.resolved.is_file() else None


def _only_name(client: MlflowClient, text: str, layout: Layout) -> str:
    """The model that this project registered last, else the only registered one."""
    note = layout.registered / "registered.json"
    if note.is_file():
        return str(read_json(note)["name"])
    names = [model.name for model in client.search_registered_models(max_results=20)]
    if len(names) != 1:
        raise UserError("of which model?", where=text, fix=f"{_FORMS}. {_known(client)}")
    return str(names[0])


def _known(client: MlflowClient) -> str:
    names = ", ".join(sorted(model.name for model in client.search_registered_models(max_results=20)))
    return f"Registered models: {names or 'none'}"
