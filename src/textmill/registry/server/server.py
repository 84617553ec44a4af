"""A team's tracking server: `mlflow server` over PostgreSQL, artefacts proxied, MLflow's authentication on."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from textmill.errors import UserError
from textmill.processes import end_family
from textmill.registry.server.postgres import private_cluster
from textmill.registry.server.secret_files import kept_secret, write_secret

DATABASE = "TEXTMILL_DATABASE"
ADMIN_PASSWORD = "TEXTMILL_ADMIN_PASSWORD"
ADMIN = "admin"

_START_SECONDS = 120
_STOP_SECONDS = 30
_LOOK_SECONDS = 0.2
_CONFIG = """\
[mlflow]
default_permission = {permission}
database_uri = {database}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
# Passwords are hashed to be slow to guess, and a training makes hundreds of requests: so a worker remembers
# for a minute that one was right. A changed password or a deleted user is refused after that at the latest.

# `mlflow db upgrade ADDRESS` and its like for users; a command line would show the password to everyone.
_UPGRADES = (
    f"import os; from mlflow.cli import cli; cli(['db', 'upgrade', os.environ['{DATABASE}']])",
    "import os; from mlflow.server.auth.cli import commands; "
    f"commands(['db', 'upgrade', '--url', os.environ['{DATABASE}']])",
)


@dataclass(frozen=True)
class ServerSettings:
    """How the server runs.

    Attributes:
        folder: Where secrets, logs, artefacts and the private database lie.
        host: The address it listens on.
        port: The port it listens on.
        workers: Processes that answer.
        database: `postgresql://...`, or None for a private cluster in `folder`.
        artifacts: Where artefacts are stored, a folder or an address such as `s3://bucket/path`.
        permission: What every user may do with what others made: `READ`, `EDIT`, `MANAGE` or `NO_PERMISSIONS`.
        allowed_hosts: Host names, with commas, by which a proxy in front calls the server.
        upgrade: Whether to bring the database's schema to the installed MLflow's first.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 5000
    workers: int = 2
    database: str | None = None
    artifacts: str | None = None
    permission: str = "EDIT"
    allowed_hosts: str | None = None
    upgrade: bool = False

    @property
    def address(self) -> str:
        """Where the server answers on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def password_file(self) -> Path:
        """The admin's password, unless `$TEXTMILL_ADMIN_PASSWORD` gave it."""
        return self.folder / "admin-password"

    @property
    def password_given(self) -> Path:
        """There when a first start was told the admin's password, so that no file holds it."""
        return self.folder / "admin-password-was-given"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "server.log"


def serve(settings: ServerSettings, ready: Callable[[], None]) -> None:
    """Run the server until SIGTERM or Ctrl-C, then stop it and the private database gracefully.

    Args:
        settings: How it runs.
        ready: Called once the server answers.

    Raises:
        UserError: Something is missing or in use, the database refuses, or the server ended by itself.
    """
    from filelock import FileLock, Timeout

    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _require_free_port(settings)
    lock = FileLock(settings.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        fix = "Stop it, or choose another folder with --folder"
        raise UserError("a server runs from this folder already", where=str(settings.folder), fix=fix) from error
    with lock, _stopped_by_signal() as stopped, _database(settings) as database:
        _require_database(database)
        environment = _environment(settings, database)
        if settings.upgrade:
            upgrade(database)
        with _process(settings, environment) as process:
            if _wait_until_ready(settings, process, stopped):
                ready()
            while not stopped():
                if process.poll() is not None:
                    raise _ended(settings)
                time.sleep(_LOOK_SECONDS)


def upgrade(database: str) -> None:
    """Bring the schemas of MLflow and of its authentication to the installed version.

    Raises:
        UserError: A migration fails; the database is left at the last one that succeeded.
    """
    for program in _UPGRADES:
        environment = {**os.environ, DATABASE: database}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1].replace(database, "the database")
            raise UserError(f"the database could not be upgraded: {last[:300]}", fix="Restore the backup")


@contextmanager
def _database(settings: ServerSettings) -> Iterator[str]:
    if settings.database is None:
        with private_cluster(settings.folder) as address:
            write_secret(settings.folder / "database-address", address)
            yield address
        return
    scheme, found, rest = settings.database.partition("://")
    if not found or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        fix = "Write postgresql://USER:PASSWORD@HOST/DATABASE, or unset it for a private PostgreSQL"
        raise UserError("not the address of a PostgreSQL database", where=f"${DATABASE}", fix=fix)
    yield f"{scheme.replace('postgres', 'postgresql') if scheme == 'postgres' else scheme}://{rest}"


def _require_database(database: str) -> None:
    """Make sure that the database lets us in; an error never shows the password."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(database, connect_args={"connect_timeout": 5})
        engine.connect().close()
        engine.dispose()
    except ImportError as error:
        fix = "Run `make server`, or install the extra: pip install 'textmill[server]'"
        raise UserError(f"a package for PostgreSQL is missing: {error.name}", fix=fix) from error
    except (SQLAlchemyError, ValueError) as error:
        told = str(getattr(error, "orig", None) or error).strip()
        reason = (told.splitlines() or ["no message"])[0]
        fix = "Check host, user, password and that the database exists"
        raise UserError(
            f"the database does not let the server in: {reason[:300]}", where=f"${DATABASE}", fix=fix
        ) from (error)


def _environment(settings: ServerSettings, database: str) -> dict[str, str]:
    """The server's environment: secrets stand here and in files of mode 600, never on a command line."""
    config = settings.folder / "basic_auth.ini"
    escaped = database.replace("%", "%%")  # configparser interpolates
    write_secret(config, _CONFIG.format(permission=settings.permission, database=escaped, admin=ADMIN))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "TEXTMILL_"))}
    return {
        **kept,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": _admin_password(settings),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": kept_secret(settings.folder / "session-key"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Background jobs serve MLflow's features for agents and traces, which Textmill does not use.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
    }


def _admin_password(settings: ServerSettings) -> str:
    """What the user admin is made with on the first start; later ones change nothing, but MLflow wants one."""
    if given := os.environ.get(ADMIN_PASSWORD):
        settings.password_given.touch(mode=0o600)
        return given
    if settings.password_given.exists() and not settings.password_file.exists():
        return secrets.token_urlsafe()
    return kept_secret(settings.password_file)


@contextmanager
def _process(settings: ServerSettings, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`mlflow server` in a session of its own, so that Ctrl-C reaches this process alone."""
    artifacts = settings.artifacts or str(settings.folder / "artifacts")
    if settings.artifacts is None:  # there before the first artefact is, for a backup; and nobody else's to read
        Path(artifacts).mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--host", settings.host, "--port", str(settings.port), "--workers", str(settings.workers)]
    command += ["--serve-artifacts", "--artifacts-destination", artifacts]
    if settings.allowed_hosts:
        command += ["--allowed-hosts", settings.allowed_hosts]
    descriptor = os.open(settings.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=settings.folder, start_new_session=True
        )
        try:
            yield process
        finally:
            end_family(process, _STOP_SECONDS)


def _wait_until_ready(settings: ServerSettings, process: subprocess.Popen[bytes], stopped: Callable[[], bool]) -> bool:
    """Wait for the first answer; False when a signal came first."""
    end = time.monotonic() + _START_SECONDS
    while not stopped():
        if process.poll() is not None:
            raise _ended(settings)
        if time.monotonic() > end:
            raise UserError(f"the server did not answer in {_START_SECONDS} s", where=str(settings.log))
        try:
            with urllib.request.urlopen(f"{settings.address}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(_LOOK_SECONDS)
    return False


def _ended(settings: ServerSettings) -> UserError:
    """What the log says of a server that ended by itself."""
    lines = settings.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    telling = [line for line in lines[-200:] if "Exception:" in line or "Error:" in line or line.startswith("Error")]
    last = (telling or lines or ["no message"])[-1].strip()
    fix = "Make a backup, then run `textmill server --upgrade`" if "out-of-date" in last else None
    return UserError(f"the server ended: {last[:300]}", where=str(settings.log), fix=fix)


def _require_free_port(settings: ServerSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise UserError(f"cannot listen here ({error.strerror})", where=where, fix="Choose another --port") from error


@contextmanager
def _stopped_by_signal() -> Iterator[Callable[[], bool]]:
    """Tells whether SIGINT or SIGTERM came, any number of times.

    No `threading.Event`: a second signal within the handler of the first would wait for its lock for ever.
    """
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
