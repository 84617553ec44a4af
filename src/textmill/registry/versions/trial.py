"""Mark versions whose registration has not ended, and remove what a killed registration left."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from textmill.registry.runs.identity import ProcessIdentity, own_identity
from textmill.registry.runs.origin import PREFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("textmill")

TRIAL = f"{PREFIX}trial"
"""Tag of a version and its logged model: the process that registers it, then `passed`; older versions have none."""
_PASSED = "passed"
_LONGEST_SECONDS = 3600  # for processes of other machines; a trial ends after five minutes


def trial_tag() -> dict[str, str]:
    """Return the tag of a version that this process registers now."""
    return {TRIAL: own_identity().as_text()}


def is_untried(version: ModelVersion) -> bool:
    """Return whether a version's registration was cut off before a fresh process had tried it, or is still running."""
    return version.tags.get(TRIAL, _PASSED) != _PASSED


def mark_tried(client: MlflowClient, version: ModelVersion) -> None:
    """Mark a version and its logged model as tried."""
    client.set_model_version_tag(version.name, version.version, TRIAL, _PASSED)
    client.set_logged_model_tags(_model_id(version), {TRIAL: _PASSED})


def leftovers(
    client: MlflowClient, name: str, experiments: list[str], keep: ModelVersion | None = None
) -> tuple[list[ModelVersion], list[LoggedModel]]:
    """Return untried versions of a model, and logged models without a version, whose process is dead."""
    versions = list(client.search_model_versions(f"name = '{name}'"))
    lost = [
        version
        for version in versions
        if is_untried(version)
        and _is_dead(version.tags[TRIAL], version.creation_timestamp)
        and (keep is None or version.version != keep.version)
    ]
    used = {_model_id(version) for version in versions}
    models: list[LoggedModel] = []
    page = None
    while experiments and (page is None or page.token):
        token = page.token if page is not None else None
        page = client.search_logged_models(experiments, filter_string=f"tags.`{TRIAL}` LIKE '{{%'", page_token=token)
        models += [
            model
            for model in page
            if model.model_id not in used and _is_dead(model.tags[TRIAL], model.creation_timestamp)
        ]
    return lost, models


def remove_leftovers(
    client: MlflowClient, name: str, experiments: list[str], keep: ModelVersion | None = None
) -> list[str]:
    """Delete what `leftovers` finds; return a description of each."""
    lost, models = leftovers(client, name, experiments, keep)
    for version in lost:
        delete_version(client, version)
    for model in models:
        client.delete_logged_model(model.model_id)
    removed = [f"{version.name} version {version.version}, never tried" for version in lost]
    removed += [f"the logged model {model.model_id} without a version" for model in models]
    for description in removed:
        log.warning("register: removed what an interrupted registration left: %s", description)
    return removed


def delete_version(client: MlflowClient, version: ModelVersion) -> None:
    """Delete a version that failed its trial, and its registered model if no version is left."""
    client.delete_model_version(version.name, version.version)
    client.delete_logged_model(_model_id(version))
    if not client.search_model_versions(f"name = '{version.name}'"):
        client.delete_registered_model(version.name)


def _model_id(version: ModelVersion) -> str:
    return str(version.source).removeprefix("models:/")


def _is_dead(identity: str, created_ms: int) -> bool:
    old = time.time() - created_ms / 1000 > _LONGEST_SECONDS
    return ProcessIdentity.from_text(identity).is_dead() or old
