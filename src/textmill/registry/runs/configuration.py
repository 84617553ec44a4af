"""The whole resolved configuration of a run, kept with the run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config import resolved

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT = "config/resolved.yaml"


def copy_configuration(client: MlflowClient, source: str, target: str) -> None:
    """Give a new run the configuration of the one that it goes on from."""
    content = read_configuration(client, source)
    if content is not None:
        client.log_text(target, resolved.dump(content), ARTIFACT)


def read_configuration(client: MlflowClient, run_id: str) -> dict[str, Any] | None:
    """The sections that a run was made with; None when it kept none."""
    folder, _, name = ARTIFACT.partition("/")
    if not any(found.path == ARTIFACT for found in client.list_artifacts(run_id, folder)):
        return None
    with tempfile.TemporaryDirectory() as temporary:
        file = client.download_artifacts(run_id, f"{folder}/{name}", temporary)
        return resolved.load(Path(file).read_text(encoding="utf-8"))
