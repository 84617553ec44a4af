"""The resolved configuration stored with a run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config import resolved

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT = "config/resolved.yaml"


def copy_configuration(client: MlflowClient, source: str, target: str) -> None:
    """Copy the stored configuration of the run `source` to the run `target`."""
    content = read_configuration(client, source)
    if content is not None:
        client.log_text(target, resolved.dump(content), ARTIFACT)


def read_configuration(client: MlflowClient, run_id: str) -> dict[str, Any] | None:
    """Return the configuration sections stored with a run, or None if there are none."""
    folder, _, name = ARTIFACT.partition("/")
    if not any(artifact.path == ARTIFACT for artifact in client.list_artifacts(run_id, folder)):
        return None
    with tempfile.TemporaryDirectory() as temporary:
        file = client.download_artifacts(run_id, f"{folder}/{name}", temporary)
        return resolved.load(Path(file).read_text(encoding="utf-8"))
