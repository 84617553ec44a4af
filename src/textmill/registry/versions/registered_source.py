"""A registered model as the source of a model server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.registry.runs.addresses import find_version, parse_address
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import open_store, short_timeout, tracking_errors
from textmill.registry.versions import versions
from textmill.registry.versions.version_files import fetch_folder
from textmill.registry.versions.versions import CHALLENGER, CHAMPION
from textmill.serving.loading import FetchedModel, Identity

if TYPE_CHECKING:
    from mlflow import MlflowClient


class RegisteredSource:
    """A version (`models:/NAME/VERSION`), or an alias (`models:/NAME@ALIAS`) that may move.

    Raises:
        UserError: The address is invalid.
    """

    def __init__(self, uri: str, layout: Layout) -> None:
        self.name, self._version, self._alias = parse_address(uri)
        self.follows = bool(self._alias)
        self._layout = layout
        self._store = ""

    def latest(self) -> str:
        """Return the version that the address names now.

        Raises:
            UserError: There is none, or the store does not answer.
        """
        client = self._client()
        if not self._alias:
            return self._version
        from mlflow.exceptions import MlflowException

        with tracking_errors(self._store), short_timeout():
            try:
                return str(client.get_model_version_by_alias(self.name, self._alias).version)
            except MlflowException as error:
                if "not found" not in str(error):
                    raise
        fix = "Run `dvc repro`, which registers a version, then `textmill promote`"
        if self._alias == CHAMPION and client.search_model_versions(f"name='{self.name}'", max_results=1):
            fix = f"Run `textmill promote`, or serve another version: --model models:/{self.name}@{CHALLENGER}"
        raise UserError(f"{self.name} has no {self._alias} yet", where=self._store, fix=fix)

    def fetch(self, version: str) -> FetchedModel:
        """Return the exported folder of a version, and its identity in the registry.

        Raises:
            UserError: It no longer exists, its manifest differs from the registered one, or the store does not answer.
        """
        client = self._client()
        uri = f"models:/{self.name}/{version}"
        with tracking_errors(self._store):
            registered = find_version(uri, client, self._layout)
            folder = fetch_folder(registered, self._layout)
        digest = str(registered.tags[f"{PREFIX}manifest_sha256"])
        commit = registered.tags.get(f"{PREFIX}git_commit")
        return FetchedModel(folder, Identity(self.name, version, digest, commit, self._alias or ""))

    def _client(self) -> MlflowClient:
        if not self._store:
            uri = versions.configured_uri(self._layout)
            self._store = open_store(RuntimeConfig(tracking_uri=uri), self._layout)
        import mlflow

        return mlflow.MlflowClient()
