"""Trace a version back to its run, git commit, dvc.lock, data and environment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import redacted
from textmill.registry.lineage.repository import LOCK, LockFile, Repository
from textmill.registry.runs.addresses import find_version
from textmill.registry.runs.origin import PREFIX, data_digests
from textmill.registry.runs.store import find_active_run, open_store, tracking_errors
from textmill.registry.versions.version_files import VERSION_MANIFEST, fetch_folder
from textmill.registry.versions.versions import configured_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_STAGE = f"{PREFIX}stage."


@dataclass(frozen=True)
class Origin:
    """A version and what its tags refer to.

    Attributes:
        version: The version in the registry.
        run: The MLflow run that created it; None if the store no longer has it.
    """

    version: ModelVersion
    run: Run | None
    store: str
    repository: Repository

    @property
    def name(self) -> str:
        """`NAME/VERSION`."""
        return f"{self.version.name}/{self.version.version}"

    def tag(self, name: str) -> str | None:
        """Return a tag of the version by its name without the prefix `textmill.`."""
        value = self.version.tags.get(PREFIX + name)
        return None if value is None else str(value)

    def run_tag(self, name: str) -> str | None:
        """Return a tag of the run by its name without the prefix `textmill.`."""
        value = None if self.run is None else self.run.data.tags.get(PREFIX + name)
        return None if value is None else str(value)

    @property
    def run_id(self) -> str:
        """Id of the run that created it."""
        return self.tag("run_id") or str(self.version.run_id or "")

    @property
    def commit(self) -> str | None:
        """The git commit that was checked out."""
        return self.tag("git_commit")

    @property
    def dirty(self) -> bool:
        """Whether there were uncommitted changes."""
        return self.tag("git_dirty") == "true"

    @property
    def data(self) -> dict[str, str]:
        """Name (`corpus`, `train`, ...) -> digest of the data."""
        return data_digests(self.version.tags)

    @cached_property
    def lock(self) -> LockFile | None:
        """The `dvc.lock` with the version's digest: from a commit, the working folder or the run's copy."""
        digest = self.tag("dvc_lock_upstream_sha256")
        if digest is None:
            return None
        lock = self.repository.find_lock(digest, self.commit)
        if lock is None and (text := self.artifact(f"register/{LOCK}")) is not None:
            lock = LockFile.if_matching(text, digest, None, "the artifacts of the run")
        return lock

    @property
    def source_commit(self) -> str | None:
        """The commit that contains everything the version was made from, or None.

        This is the commit that was checked out. If it had uncommitted changes, it is the later commit or
        DVC experiment that contains the same `dvc.lock`.
        """
        if not self.dirty:
            return self.commit
        return self.lock.commit if self.lock is not None and self.lock.commit != self.commit else None

    def artifact(self, path: str) -> str | None:
        """Return the text of an artifact of the run, or None."""
        import mlflow
        from mlflow.exceptions import MlflowException

        if self.run is None:
            return None
        try:
            return mlflow.artifacts.load_text(f"runs:/{self.run.info.run_id}/{path}")
        except (MlflowException, OSError):
            return None


def find_origin(address: str, layout: Layout) -> Origin:
    """Return the version at an address with its origin.

    Raises:
        UserError: The version does not exist, or the store cannot be reached.
    """
    import mlflow

    store = open_store(RuntimeConfig(tracking_uri=configured_uri(layout)), layout)
    client = mlflow.MlflowClient()
    with tracking_errors(store):
        named = find_version(address, client, layout)
        version = client.get_model_version(named.name, str(named.version))  # a version found by alias lacks its aliases
        return origin_of(version, layout)


def origin_of(version: ModelVersion, layout: Layout) -> Origin:
    """Return a version of the open store with its origin."""
    import mlflow

    client = mlflow.MlflowClient()
    run_id = version.tags.get(f"{PREFIX}run_id") or version.run_id
    run = find_active_run(client, str(run_id) if run_id else None)
    return Origin(version, run, client.tracking_uri, Repository(layout.root))


def exported_folder(origin: Origin, layout: Layout) -> Path:
    """Return the exported folder of a version after checking all digests.

    Raises:
        UserError: A file was changed, or the store cannot be reached.
    """
    with tracking_errors(origin.store):
        return fetch_folder(origin.version, layout)


def lineage(origin: Origin) -> dict[str, dict[str, Any]]:
    """Return the lineage as plain values, one entry a link; unknown values are None."""
    lock = origin.lock
    return {
        "version": {
            "name": origin.version.name,
            "version": str(origin.version.version),
            "aliases": sorted(origin.version.aliases),
            "registered": _time(origin.version.creation_timestamp),
            "manifest_sha256": origin.tag("manifest_sha256"),
            VERSION_MANIFEST: origin.tag(VERSION_MANIFEST),
            "weights_sha256": origin.tag("weights_sha256"),
            "teacher": origin.tag("teacher"),
            "started_from": origin.tag("started_from"),
            "store": redacted(origin.store),
        },
        "run": _run_part(origin),
        "commit": {
            "commit": origin.commit,
            "subject": (origin.repository.subject(origin.commit) or None) if origin.commit else None,
            "uncommitted_changes": origin.dirty,
            "committed_later_as": origin.source_commit if origin.dirty else None,
        },
        "lock": {
            "sha256_before_register": origin.tag("dvc_lock_upstream_sha256"),
            "found_in": lock.where if lock else None,
            "outputs": {path: out.get("md5") for path, out in lock.outputs.items()} if lock else {},
        },
        "data": dict(origin.data),
        "environment": {
            "sha256": origin.tag("environment_sha256"),
            "python": origin.run_tag("python"),
            "platform": origin.run_tag("platform"),
        },
    }


def _run_part(origin: Origin) -> dict[str, Any]:
    run = origin.run
    if run is None:
        return {"run_id": origin.run_id, "name": None, "status": None}
    return {
        "run_id": origin.run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "experiment": origin.run_tag("experiment"),
        "started": _time(run.info.start_time),
        "user": run.data.tags.get("mlflow.user"),
        "made_from_run": origin.run_tag("upstream_run_id"),
        "stages": {
            key.removeprefix(_STAGE): value for key, value in sorted(run.data.tags.items()) if key.startswith(_STAGE)
        },
    }


def _time(milliseconds: int | None) -> str | None:
    """Return an MLflow time as ISO 8601 in UTC, to the second."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
