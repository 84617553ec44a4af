"""The whole resolved configuration of a run, kept with the run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config import resolved
from textmill.config.layout import Layout
from textmill.config.section import Section
from textmill.registry.store import tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from textmill.registry.tracking import StageRun

ARTIFACT = "config/resolved.yaml"


def log_configuration(run: StageRun, stage: str, section: Section, layout: Layout) -> None:
    """Keep the configuration with the run, `stage`'s section as the stage really used it.

    A stage run by hand may have been given other values than `data/resolved.yaml` holds, and a run
    that is continued keeps those of the stages before.
    """
    with tracking_errors(run.uri):
        content = read_configuration(run.client, run.run_id)
        if content is None and layout.resolved.is_file():
            content = resolved.load(layout.resolved.read_text(encoding="utf-8"))
        if content is not None:
            content[stage] = section.model_dump(mode="json", by_alias=True)
            run.client.log_text(run.run_id, resolved.dump(content), ARTIFACT)


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
