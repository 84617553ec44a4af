"""Find or create the MLflow run of a stage: now, or at a later `textmill sync`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError
from textmill.registry.runs.entries import read_configuration, write_configuration
from textmill.registry.runs.identity import own_identity
from textmill.registry.runs.origin import PREFIX, PROCESS, REGISTERED, installed_packages, origin_tags, user_name
from textmill.registry.runs.store import find_active_run, local_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Opening:
    """All that decides which run a stage continues or opens.

    Attributes:
        stage: Name of the stage.
        fingerprint: Digest of everything that determines the stage's result.
        experiment: MLflow's experiment.
        name: Name of a new run.
        previous: Run id of the stage before, or None to open a new run.
        resume: Interrupted run of this stage to continue.
        local_id: Id on this machine, under which the run is found until the store has given it one.
        tags: Tags that the stage sets.
        new: Tags and packages of a new run; computed when empty.
        started: Start of the stage, in milliseconds since 1970.
    """

    stage: str
    fingerprint: str
    experiment: str
    name: str
    previous: str | None
    resume: str | None = None
    local_id: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    new: dict[str, Any] = field(default_factory=dict)
    started: int = field(default_factory=lambda: int(time.time() * 1000))


@dataclass(frozen=True)
class Opened:
    """An open run, with the last step of each metric where a stage is resumed."""

    run_id: str
    last_steps: dict[str, int]


def new_run(root: Path, experiment: str) -> dict[str, Any]:
    """Return tags and packages of a run that this process creates."""
    tags = origin_tags(root) | {
        f"{PREFIX}experiment": experiment,
        "mlflow.source.name": "textmill",
        "mlflow.source.type": "PROJECT",
    }
    if user := user_name():
        tags["mlflow.user"] = user
    return {"tags": tags, "packages": installed_packages()}


def process_tag() -> dict[str, str]:
    """Return the tag that names this process, by which `textmill doctor` sees whether a run is still at work."""
    return {PROCESS: own_identity().as_text()}


def open_run(client: MlflowClient, opening: Opening, root: Path) -> Opened:
    """Continue the run that the opening names, or create one; mark it RUNNING unless a version is registered of it."""
    resume = opening.resume
    run = find_active_run(client, resume or opening.previous)
    last_steps: dict[str, int] = {}
    if run is not None and resume is not None:
        last_steps = {metric.key: metric.step for metric in run.data._metric_objs}
    source = run
    if run is None or (resume is None and _holds_another(run, opening.stage, opening.fingerprint)):
        run = _find_linked(client, opening) or find_active_run(client, opening.local_id)
    tags = dict(opening.tags)
    if opening.local_id is not None:
        tags[local_tag(opening.local_id)] = "true"
    if run is not None:
        run_id = str(run.info.run_id)
        if REGISTERED not in run.data.tags:
            client.update_run(run_id, status="RUNNING")
    else:
        new = opening.new or new_run(root, opening.experiment)
        created = {**new["tags"], **(tags if opening.local_id is not None else {})}
        run_id = create_run(client, opening.experiment, opening.name, created, opening.started)
        client.log_text(run_id, new["packages"], "environment/requirements.txt")
        _copy(client, run_id, source, opening.previous)
    _set_tags(client, run_id, tags)
    return Opened(run_id, last_steps)


def create_run(
    client: MlflowClient, experiment: str, name: str, tags: dict[str, str], started: int | None = None
) -> str:
    """Create a run and return its id."""
    stored = client.get_experiment_by_name(experiment)
    if stored is None:
        raise UserError(f"the experiment {experiment!r} no longer exists in the tracking store")
    created = client.create_run(stored.experiment_id, start_time=started, run_name=name, tags=tags)
    return str(created.info.run_id)


def run_name(label: str, fingerprint: str) -> str:
    """Return the name of a new run: DVC's experiment, or the label with the fingerprint."""
    return os.environ.get("DVC_EXP_NAME") or f"{label}-{fingerprint[:8]}"


def _find_linked(client: MlflowClient, opening: Opening) -> Run | None:
    """Return the run that an earlier call opened for this stage after the run `previous`."""
    store = client.get_experiment_by_name(opening.experiment)
    if opening.previous is None or store is None:
        return None
    tags = {f"{PREFIX}upstream_run_id": opening.previous, f"{PREFIX}stage.{opening.stage}": opening.fingerprint}
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return next(iter(client.search_runs([store.experiment_id], query, max_results=1)), None)


def _holds_another(run: Run, stage: str, fingerprint: str) -> bool:
    return str(run.data.tags.get(f"{PREFIX}stage.{stage}", fingerprint)) != fingerprint


def _copy(client: MlflowClient, run_id: str, source: Run | None, previous: str | None) -> None:
    """Link a new run to the run `previous` and copy its parameters and configuration."""
    if previous is None:
        return
    from mlflow.entities import Param

    _set_tags(client, run_id, {f"{PREFIX}upstream_run_id": previous})
    if source is None:
        return
    if train := source.data.tags.get(f"{PREFIX}stage.train"):
        _set_tags(client, run_id, {f"{PREFIX}stage.train": train})
    if (content := read_configuration(client, source.info.run_id)) is not None:
        write_configuration(client, run_id, content)
    params = [Param(key, value) for key, value in source.data.params.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])


def _set_tags(client: MlflowClient, run_id: str, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
