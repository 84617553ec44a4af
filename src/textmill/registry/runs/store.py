"""Finding and opening MLflow's store: where it lies, its first use, its errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.registry.runs import descriptions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException

URI = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"

# MLflow's own patience is two minutes a request and four minutes of retries: a server that is down
# would look like a hang. A user's own setting wins.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_FIRST_ANSWER_SECONDS = "4"

# Else MLflow's page asks each visitor whether this is about training or about agents.
_KIND = "mlflow.experimentKind"

_set_here: dict[str, str | None] = {}
"""What the user's `$MLFLOW_TRACKING_URI` was, by the address that MLflow has put there for us since."""


def connect(runtime: RuntimeConfig, layout: Layout) -> None:
    """Point MLflow to the store and make sure that it answers and has the experiment.

    The store is `runtime.tracking_uri`, else `$MLFLOW_TRACKING_URI`, else `mlflow.db` with
    `mlruns/` in the project's home. Any number of processes may do this at once on an empty store.

    Raises:
        UserError: The store cannot be reached or written, or the experiment was deleted in it.
        OSError: The database's file cannot be written.
    """
    uri = open_store(runtime, layout)
    artifacts = None
    if database := database_file(uri):
        artifacts = f"{(database.parent / 'mlruns').as_uri()}/{quote(runtime.tracking_experiment, safe='')}"
    with tracking_errors(uri), answers_soon():
        _ensure_experiment(runtime.tracking_experiment, artifacts)


def open_store(runtime: RuntimeConfig, layout: Layout) -> str:
    """Point MLflow to the store and make sure that it answers; gives its address.

    Raises:
        UserError: The store cannot be reached or written.
        OSError: The database's file cannot be written.
    """
    uri = tracking_uri(runtime, layout)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    _quiet()
    _set_here[uri] = _users_uri()
    with tracking_errors(uri), answers_soon():
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        if database := database_file(uri):
            _open_database(uri, database)
        else:
            mlflow.MlflowClient().search_experiments(max_results=1)
    return uri


def tracking_uri(runtime: RuntimeConfig, layout: Layout) -> str:
    """The address of the store. A relative SQLite path is taken from the project's home."""
    uri = runtime.tracking_uri or _users_uri() or f"{_SQLITE}{layout.home / 'mlflow.db'}"
    if database := database_file(uri):
        return f"{_SQLITE}{layout.home / database}"
    return uri


def _users_uri() -> str | None:
    """The user's `$MLFLOW_TRACKING_URI`; `mlflow.set_tracking_uri` writes its own into the same variable."""
    found = os.environ.get(URI)
    return _set_here.get(found, found) if found else None


def database_file(uri: str) -> Path | None:
    """The file of a SQLite store, or None for any other store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def find_run(client: MlflowClient, run_id: str | None) -> Run | None:
    """The run, or None when this store has none or it was deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE") or is_forbidden(error):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Tell a store that cannot be reached or refuses in one line."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    uri = re.sub(r"//[^/@]*@", "//", uri)  # no password in a message
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())
        if "Max retries exceeded" in reason or isinstance(error, RequestException):
            raise UserError(
                "the tracking server does not answer",
                where=uri,
                fix=f"Start it, or change ${URI} or runtime.tracking_uri",
            ) from error
        if refused := _access_refused(error, uri):
            raise refused from error
        raise UserError(f"the tracking store refuses: {reason[:300]}", where=uri) from error


def is_forbidden(error: MlflowException) -> bool:
    """Whether a server with users refused; it does so too for a run that does not exist."""
    return bool(error.error_code == "PERMISSION_DENIED") or "error code 403" in str(error)


def _access_refused(error: Exception, uri: str) -> UserError | None:
    """The error of a server that does not know the user, or does not let him do this."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return None
    user, password = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
    if error.error_code == "UNAUTHENTICATED" or "error code 401" in str(error):
        told = "refuses this user or password" if os.environ.get(user) else "asks for a user and a password"
        return UserError(f"the tracking server {told}", where=uri, fix=f"Set ${user} and ${password}")
    if is_forbidden(error):
        told = f"the tracking server does not allow this to the user {os.environ.get(user, 'of these credentials')}"
        return UserError(told, where=uri, fix="Ask its admin for the permission EDIT, to promote or delete for MANAGE")
    return None


def _quiet() -> None:
    """Keep MLflow's and Alembic's housekeeping off the terminal."""
    import logging

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _open_database(uri: str, database: Path) -> None:
    """Make or check the schema, one process at a time.

    MLflow makes the schema lazily and without a lock. It also notes the working folder's `mlruns`
    as the place of its default experiment; here that is the one beside the database.
    """
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    database.open("ab").close()  # an OSError tells more than MLflow after its retries
    with FileLock(f"{database}-lock"):
        SqlAlchemyStore(uri, (database.parent / "mlruns").as_uri())  # type: ignore[no-untyped-call]


def _ensure_experiment(name: str, artifacts: str | None) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            tags = {descriptions.NOTE: descriptions.EXPERIMENT, _KIND: "custom_model_development"}
            client.create_experiment(name, artifact_location=artifacts, tags=tags)
        except MlflowException:
            if client.get_experiment_by_name(name) is None:
                raise
    elif found.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(
            f"the experiment {name!r} was deleted in the tracking store",
            fix=f"Run `mlflow experiments restore --experiment-id {found.experiment_id}` or choose another name",
        )


@contextmanager
def answers_soon() -> Iterator[None]:
    """A short time limit for small requests; a large upload, outside of this, may take its time."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    if name in os.environ:
        yield
        return
    os.environ[name] = _FIRST_ANSWER_SECONDS
    try:
        yield
    finally:
        del os.environ[name]
