"""Open the tracking store: its address, its first use, its errors in one line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

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

# MLflow's defaults are two minutes a request and four minutes of retries: a server that is down would
# look like a hang. Settings of the user take precedence.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_SHORT_TIMEOUT_SECONDS = "4"

# Without it MLflow's page asks each visitor whether the experiment is about training or agents.
_KIND = "mlflow.experimentKind"

_previous_uri: dict[str, str | None] = {}
"""Address that MLflow wrote to `$MLFLOW_TRACKING_URI` -> the user's value before."""


def connect(runtime: RuntimeConfig, layout: Layout) -> None:
    """Connect MLflow to the store and create the experiment if it does not exist.

    The store is `runtime.tracking_uri`, else `$MLFLOW_TRACKING_URI`, else `mlflow.db` with `mlruns/` in
    the project's home. Processes may do this concurrently on an empty store.

    Raises:
        UserError: The store cannot be reached or written, or the experiment was deleted.
        OSError: The database file cannot be written.
    """
    uri = open_store(runtime, layout)
    artifacts = None
    if database := database_file(uri):
        artifacts = f"{(database.parent / 'mlruns').as_uri()}/{quote(runtime.tracking_experiment, safe='')}"
    with tracking_errors(uri), short_timeout():
        _ensure_experiment(runtime.tracking_experiment, artifacts)


def open_store(runtime: RuntimeConfig, layout: Layout) -> str:
    """Connect MLflow to the store, check that it answers, and return its address.

    Raises:
        UserError: The store cannot be reached or written.
        OSError: The database file cannot be written.
    """
    uri = tracking_uri(runtime, layout)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _previous_uri[uri] = _user_uri()
    with tracking_errors(uri), short_timeout():
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        if database := database_file(uri):
            _open_database(uri, database)
        else:
            mlflow.MlflowClient().search_experiments(max_results=1)
    return uri


@contextmanager
def open_client(runtime: RuntimeConfig, layout: Layout) -> Iterator[MlflowClient]:
    """Open the store and yield its client; errors of the store become UserErrors of one line."""
    uri = open_store(runtime, layout)
    import mlflow

    with tracking_errors(uri):
        yield mlflow.MlflowClient()


def tracking_uri(runtime: RuntimeConfig, layout: Layout) -> str:
    """Return the address of the store. A relative SQLite path is relative to the project's home."""
    uri = runtime.tracking_uri or _user_uri() or f"{_SQLITE}mlflow.db"
    if database := database_file(uri):
        _, question_mark, query = uri.partition("?")
        return f"{_SQLITE}{_quoted(layout.home / database)}{question_mark}{query}"
    return uri


def _user_uri() -> str | None:
    """Return the user's `$MLFLOW_TRACKING_URI`; `mlflow.set_tracking_uri` overwrites the variable."""
    uri = os.environ.get(URI)
    return _previous_uri.get(uri, uri) if uri else None


def database_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, or None for any other store."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])) if uri.startswith(_SQLITE) else None


def _quoted(database: Path) -> str:
    """Return a path for an address, quoted only if SQLAlchemy would read it as another path or as options."""
    path = str(database)
    return path.replace("%", "%25").replace("?", "%3F") if unquote(path) != path or "?" in path else path


def find_active_run(client: MlflowClient, run_id: str | None) -> Run | None:
    """Return the run, or None if the store does not have it or it was deleted."""
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
    """Translate errors of the store into a UserError of one line."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    uri = re.sub(r"//[^/@]*@", "//", uri)  # the message must not show a password
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
        raise UserError(f"error of the tracking store: {reason[:300]}", where=uri) from error


def is_forbidden(error: MlflowException) -> bool:
    """Return whether a server with authentication denied access; it does so for a missing run too."""
    return bool(error.error_code == "PERMISSION_DENIED") or "error code 403" in str(error)


def _access_refused(error: Exception, uri: str) -> UserError | None:
    """Return the error for a missing login or a missing permission, or None for other errors."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return None
    user, password = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
    if error.error_code == "UNAUTHENTICATED" or "error code 401" in str(error):
        problem = "rejects this user or password" if os.environ.get(user) else "requires a user and a password"
        return UserError(f"the tracking server {problem}", where=uri, fix=f"Set ${user} and ${password}")
    if is_forbidden(error):
        problem = f"the tracking server denies this to the user {os.environ.get(user, 'of these credentials')}"
        fix = "Ask its admin for the permission EDIT, or MANAGE to promote or delete"
        return UserError(problem, where=uri, fix=fix)
    return None


def _open_database(uri: str, database: Path) -> None:
    """Create or check the schema, one process at a time.

    MLflow creates the schema lazily and without a lock. It also stores the default experiment's artifact
    location: by default `mlruns` in the working folder, here next to the database.
    """
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    database.open("ab").close()  # raises an OSError clearer than MLflow's error after its retries
    with FileLock(f"{database}-lock"):
        SqlAlchemyStore(uri, (database.parent / "mlruns").as_uri())  # type: ignore[no-untyped-call]


def _ensure_experiment(name: str, artifacts: str | None) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            tags = {descriptions.NOTE: descriptions.EXPERIMENT, _KIND: "custom_model_development"}
            client.create_experiment(name, artifact_location=artifacts, tags=tags)
        except MlflowException:
            if client.get_experiment_by_name(name) is None:
                raise
    elif experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(
            f"the experiment {name!r} was deleted in the tracking store",
            fix=f"Run `mlflow experiments restore --experiment-id {experiment.experiment_id}` or use another name",
        )


@contextmanager
def short_timeout() -> Iterator[None]:
    """Set a short timeout for small requests. Do not use it for uploads, which may take longer."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    if name in os.environ:
        yield
        return
    os.environ[name] = _SHORT_TIMEOUT_SECONDS
    try:
        yield
    finally:
        del os.environ[name]
