"""Save the configuration of a run, version or DVC experiment as an experiment of `conf/`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config import resolved
from textmill.config.inverse import experiment_text, overruled
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.files import atomic_write
from textmill.registry.lineage.dvc_cache import Cache
from textmill.registry.lineage.lineage import find_origin
from textmill.registry.lineage.repository import LOCK, LockFile, Repository
from textmill.registry.runs.addresses import RUN_ID
from textmill.registry.runs.store import find_active_run, open_client, tracking_errors
from textmill.registry.runs.tracking import read_configuration
from textmill.registry.versions.versions import configured_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
_EXPERIMENTS = "refs/exps/"
_INTERNAL = ("exec", "stash", "celery", "apply")
_RESOLVED = "data/resolved.yaml"


@dataclass(frozen=True)
class Adopted:
    """An experiment that was written.

    Attributes:
        origin: The source, as a phrase.
        overruled: Dotted names of the values that `params.yaml` overrides.
    """

    name: str
    path: Path
    origin: str
    text: str
    overruled: list[str]


def adopt(source: str, name: str | None, layout: Layout, *, force: bool = False) -> Adopted:
    """Write `conf/experiment/NAME.yaml`, which composes to the configuration of a run.

    `source` is a DVC experiment, MLflow run id, version address or git revision. The name defaults to
    that of the source. `force` overwrites an experiment of this name.

    Raises:
        UserError: The source does not exist or stored no configuration, the name is taken or invalid, or
            `conf/` cannot compose to the configuration.
    """
    sections, origin, label = _find_configuration(source, layout)
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-")
    if not _NAME.match(name):
        raise UserError("not a valid experiment name", where=name, fix="Use letters, digits, - and _")
    path = layout.conf / "experiment" / f"{name}.yaml"
    if path.exists() and not force:
        raise UserError("the file exists", where=str(path), fix="Give another name, or --force to overwrite it")
    text = experiment_text(layout, name, sections, f"Adopted from {origin}.")
    atomic_write(path, text)
    return Adopted(name, path, origin, text, overruled(layout, name, sections))


def _find_configuration(source: str, layout: Layout) -> tuple[dict[str, Any], str, str]:
    """Return the resolved configuration sections, a phrase for their origin, and a name."""
    repository = Repository(layout.root)
    if commit := _experiment_commit(repository, source):
        return _of_commit(repository, commit, f"DVC experiment {source}", source)
    if RUN_ID.fullmatch(source):
        with open_client(RuntimeConfig(tracking_uri=configured_uri(layout)), layout) as client:
            run = find_active_run(client, source)
        if run is not None:
            return _of_run(run, f"run {run.info.run_name} ({source})", str(run.info.run_name))
    is_revision = repository.has_commit(source) and not source.isdigit()
    try:
        origin = find_origin(source, layout)
    except UserError as error:
        if is_revision:
            return _of_commit(repository, source, f"git revision {source}", source)
        raise UserError(
            "no DVC experiment, run, version or git revision of this name", where=source, fix=str(error.fix or "")
        ) from error
    if origin.run is None:
        raise UserError(f"its run {origin.run_id} is no longer in {origin.store}", where=origin.name)
    return _of_run(origin.run, f"version {origin.name} (run {origin.run_id})", origin.name)


def _of_run(run: Run, origin: str, name: str) -> tuple[dict[str, Any], str, str]:
    import mlflow

    with tracking_errors(mlflow.get_tracking_uri()):
        sections = read_configuration(mlflow.MlflowClient(), run.info.run_id)
    if sections is None:
        fix = "Run it again: `dvc repro --force train`"
        raise UserError("the run stored no configuration", where=origin, fix=fix)
    return sections, origin, name


def _experiment_commit(repository: Repository, name: str) -> str | None:
    """Return the commit of a DVC experiment: the latest where several have the name."""
    listed = repository.git("for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)", _EXPERIMENTS)
    for line in (listed or "").splitlines():
        reference, commit = line.split()
        parts = reference.removeprefix(_EXPERIMENTS).split("/")
        if parts[0] not in _INTERNAL and len(parts) > 1 and parts[-1] == name:
            return commit
    return None


def _of_commit(repository: Repository, commit: str, origin: str, name: str) -> tuple[dict[str, Any], str, str]:
    """Read the output of `compose` of a commit from DVC's cache."""
    content = repository.file(commit, LOCK)
    lock = LockFile(content.decode("utf-8"), commit, origin) if content is not None else None
    if lock is None or _RESOLVED not in lock.outputs:
        fix = "Name a revision in which the pipeline ran"
        raise UserError(f"no {_RESOLVED} in its {LOCK}", where=origin, fix=fix)
    file = Cache.of(repository.root).file_in(lock.outputs[_RESOLVED], "")
    if file is None:
        fix = "Run `dvc exp pull` or `dvc fetch --all-commits` first"
        raise UserError(f"its {_RESOLVED} is not in the DVC cache", where=origin, fix=fix)
    return resolved.load(file.read_text(encoding="utf-8")), origin, name
