"""The version that an alias of the registry names, and its move to another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.registry.runs.addresses import find_version, parse_address
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import answers_soon, open_store, tracking_errors
from textmill.registry.versions import versions
from textmill.registry.versions.versions import CHALLENGER, CHAMPION
from textmill.serving.loading import Fetched, Identity

if TYPE_CHECKING:
    from mlflow import MlflowClient


class RegisteredSource:
    """`models:/NAME/VERSION`, or `models:/NAME@ALIAS`, which may come to name another version.

    Args:
        uri: The address.
        layout: The project, whose tracking store is asked.

    Raises:
        UserError: It is no such address.
    """

    def __init__(self, uri: str, layout: Layout) -> None:
        self.name, self._version, self._alias = parse_address(uri)
        self.follows = bool(self._alias)
        self._layout = layout
        self._store = ""

    def latest(self) -> str:
        """The version that the address names now.

        Raises:
            UserError: There is none, or the store does not answer.
        """
        client = self._client()
        if not self._alias:
            return self._version
        from mlflow.exceptions import MlflowException

        with tracking_errors(self._store), answers_soon():
            try:
                return str(client.get_model_version_by_alias(self.name, self._alias).version)
            except MlflowException as error:
                if "not found" not in str(error):
                    raise
        fix = (
            f"Run `textmill promote`, or serve another: --model models:/{self.name}@{CHALLENGER}"
            if self._alias == CHAMPION
            else "Register or promote a version first"
        )
        raise UserError(f"{self.name} has no {self._alias} yet", where=self._store, fix=fix)

    def fetch(self, version: str) -> Fetched:
        """The exported folder of a version, and what the registry says about it.

        Raises:
            UserError: It is gone, its manifest is not the registered one, or the store does not answer.
        """
        client = self._client()
        uri = f"models:/{self.name}/{version}"
        with tracking_errors(self._store):
            found = find_version(uri, client, self._layout)
            folder = versions.folder_of(found, self._layout)
        digest = str(found.tags[f"{PREFIX}manifest_sha256"])
        return Fetched(folder, Identity(self.name, version, digest, found.tags.get(f"{PREFIX}git_commit")))

    def _client(self) -> MlflowClient:
        if not self._store:
            uri = versions.configured_uri(self._layout)
            self._store = open_store(RuntimeConfig(tracking_uri=uri), self._layout)
        import mlflow

        return mlflow.MlflowClient()
