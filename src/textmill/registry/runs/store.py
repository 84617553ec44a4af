"""Open the tracking store: its address, its first use, its errors in one line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from textmill.config.layout import Layout
from textmill.config.secrets import reveal, without_login
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError, disk_full, hide
from textmill.registry.runs import descriptions
from textmill.registry.runs.origin import PREFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException

URI = "MLFLOW_TRACKING_URI"
OFFLINE = "TEXTMILL_OFFLINE"
_SQLITE = "sqlite:///"

# MLflow's defaults are two minutes a request and four minutes of retries: a server that is down would
# look like a hang. Settings of the user take precedence.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_SHORT_TIMEOUT_SECONDS = 4
_NO_ANSWER = re.compile(r"Max retries exceeded|failed with (timeout )?exception")
_STORE_FULL = ("database or disk is full", "no space left on device", "disk full", "disk quota exceeded")
_NEEDED_BYTES = 10_000_000

# Without it MLflow's page asks each visitor whether the experiment is about training or agents.
_KIND = "mlflow.experimentKind"

_timeouts: list[str] = []
"""Timeouts that this process has set, and the user has not."""
_previous_uri: dict[str, str | None] = {}
"""Address that MLflow wrote to `$MLFLOW_TRACKING_URI` -> the user's value before."""


class UnreachableError(UserError):
    """The tracking server does not answer."""


def is_offline(runtime: RuntimeConfig, layout: Layout) -> bool:
    """Return whether the user asks not to use the tracking server; a local store is always used."""
    wanted = runtime.tracking_offline or os.environ.get(OFFLINE, "0") not in ("", "0")
    return wanted and database_file(tracking_uri(runtime, layout)) is None


def connect(runtime: RuntimeConfig, layout: Layout) -> None:
    """Connect MLflow to the store and create the experiment if it does not exist; do nothing when offline.

    The store is `runtime.tracking_uri`, else `$MLFLOW_TRACKING_URI`, else `mlflow.db` with `mlruns/` in
    the project's home. Processes may do this concurrently on an empty store.

    Raises:
        UserError: The store cannot be reached or written, or the experiment was deleted.
        OSError: The database file cannot be written.
    """
    if is_offline(runtime, layout):
        return
    uri = open_store(runtime, layout)
    artifacts = None
    if database := database_file(uri):
        artifacts = f"{(database.parent / 'mlruns').as_uri()}/{quote(runtime.tracking_experiment, safe='')}"
    with tracking_errors(uri), short_timeout():
        ensure_experiment(runtime.tracking_experiment, artifacts)


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
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback besides the exception
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # a line for each retry
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
    uri = reveal(runtime.tracking_uri, "runtime.tracking_uri") or _user_uri() or f"{_SQLITE}mlflow.db"
    if database := database_file(uri):
        _, question_mark, query = uri.partition("?")
        return f"{_SQLITE}{_quoted(layout.home / database)}{question_mark}{query}"
    return _without_login(uri)


def _without_login(uri: str) -> str:
    """Move the login of a server's address to the variables from which MLflow takes it, out of every record."""
    bare, user, password = without_login(uri)
    if user:
        hide(password or user)
    if not password or not uri.startswith(("http://", "https://")):
        return uri  # a database takes its login from the address alone
    os.environ |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    return bare


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
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE") and not is_forbidden(error):
            raise
        return _find_local(client, run_id)
    return run if run.info.lifecycle_stage == "active" else None


def local_tag(local_id: str) -> str:
    """Return the tag of a run that was opened without the server, under an id of that machine."""
    return f"{PREFIX}local.{local_id}"


def _find_local(client: MlflowClient, local_id: str) -> Run | None:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"tags.`{local_tag(local_id)}` = 'true'"
    return next(iter(client.search_runs(experiments, query, max_results=1)), None)


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Translate errors of the store into a UserError of one line."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())
        if _NO_ANSWER.search(reason) or isinstance(error, RequestException):
            raise UnreachableError(
                "the tracking server does not answer",
                where=uri,
                fix=f"Start it, or change ${URI} or runtime.tracking_uri",
            ) from error
        if refused := _access_refused(error, uri):
            raise refused from error
        if any(sign in reason.lower() for sign in _STORE_FULL):
            raise _disk_full(uri) from error
        raise UserError(f"error of the tracking store: {reason[:300]}", where=uri) from error


def without_credentials(uri: str) -> str:
    """Return an address without user and password, which no message or file may show."""
    return without_login(uri)[0]


def _disk_full(uri: str) -> UserError:
    """Return the error of a store that cannot grow; a server reports its own disk in the same words."""
    database = database_file(uri)
    if database is None:
        fix = f"Ask its admin to free {_NEEDED_BYTES / 1e6:.0f} MB or more there, then run the command again"
        return UserError("the disk of the tracking server is full", where=uri, fix=fix)
    return disk_full(database, _NEEDED_BYTES, "run the command again; what was stored before is unchanged")


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

    MLflow creates the schema lazily, without a lock, and in many steps: a new database gets its name when it is
    complete, since no later process could use one whose creation was killed. MLflow also stores the default
    experiment's artifact location: by default `mlruns` in the working folder, here next to the database.
    """
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    artifacts = (database.parent / "mlruns").as_uri()
    with FileLock(f"{database}-lock"):
        if not database.is_file() or not database.stat().st_size:
            partial = database.with_name(f"{database.name}-partial")
            for suffix in ("", "-journal", "-wal"):  # of a creation that was killed
                partial.with_name(f"{partial.name}{suffix}").unlink(missing_ok=True)
            partial.touch()  # raises an OSError clearer than MLflow's error after its retries
            store = SqlAlchemyStore(f"{_SQLITE}{_quoted(partial)}", artifacts)  # type: ignore[no-untyped-call]
            store.engine.dispose()
            partial.replace(database)
        database.open("ab").close()
        SqlAlchemyStore(uri, artifacts)  # type: ignore[no-untyped-call]


def ensure_experiment(name: str, artifacts: str | None = None) -> None:
    """Create the experiment if it does not exist; `artifacts` is where its runs store files, None as the server has it.

    Raises:
        UserError: It was deleted.
    """
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
def request_timeout(seconds: int | None) -> Iterator[None]:
    """Set the timeout of a request unless the user has; None keeps MLflow's, as uploads of a model need."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    if seconds is None or (before is not None and before not in _timeouts):
        yield
        return
    os.environ[name] = str(seconds)
    _timeouts.append(str(seconds))
    try:
        yield
    finally:
        _timeouts.pop()
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def short_timeout() -> AbstractContextManager[None]:
    """Set a short timeout for small requests. Do not use it for uploads, which may take longer."""
    return request_timeout(_SHORT_TIMEOUT_SECONDS)
