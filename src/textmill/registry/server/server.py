"""A tracking server for a team: `mlflow server` over PostgreSQL, with proxied artifacts and authentication."""

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
from textmill.registry.server.secret_files import read_or_create_secret, write_secret

DATABASE = "TEXTMILL_DATABASE"
ADMIN_PASSWORD = "TEXTMILL_ADMIN_PASSWORD"
ADMIN = "admin"

_START_SECONDS = 120
_STOP_SECONDS = 30
_POLL_SECONDS = 0.2
_CONFIG = """\
[mlflow]
default_permission = {permission}
database_uri = {database}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
# Password hashes are slow to check and a training sends hundreds of requests: a worker caches a successful
# login for 60 s. A changed password or a deleted user takes effect after that.

# `mlflow db upgrade ADDRESS` for both schemas; on a command line every user could see the password.
_UPGRADES = (
    f"import os; from mlflow.cli import cli; cli(['db', 'upgrade', os.environ['{DATABASE}']])",
    "import os; from mlflow.server.auth.cli import commands; "
    f"commands(['db', 'upgrade', '--url', os.environ['{DATABASE}']])",
)


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server.

    Attributes:
        folder: Folder of secrets, logs, artifacts and the private database.
        workers: Number of server processes.
        database: `postgresql://...`, or None for a private cluster in `folder`.
        artifacts: Artifact store, a folder or an address such as `s3://bucket/path`; None for `folder`.
        permission: Permission of every user on the work of others: `READ`, `EDIT`, `MANAGE` or `NO_PERMISSIONS`.
        allowed_hosts: Host names, separated by commas, under which a proxy calls the server.
        upgrade: Whether to upgrade the database schema to the installed MLflow first.
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
        """Address of the server on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # asked for  # nosec B104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def password_file(self) -> Path:
        """File with the admin's password, unless `$TEXTMILL_ADMIN_PASSWORD` set it."""
        return self.folder / "admin-password"

    @property
    def password_given(self) -> Path:
        """Marker file: `$TEXTMILL_ADMIN_PASSWORD` set the password at the first start, so no file has it."""
        return self.folder / "admin-password-was-given"

    @property
    def log(self) -> Path:
        """Log file of the server."""
        return self.folder / "server.log"


def serve(settings: ServerSettings, ready: Callable[[], None]) -> None:
    """Run the server until SIGTERM or Ctrl-C, then stop it and the private database; call `ready` once it answers.

    Raises:
        UserError: A program, package or port is not available, the database refuses, or the server ended.
    """
    from filelock import FileLock, Timeout

    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _require_free_port(settings)
    lock = FileLock(settings.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        fix = "Stop it, or choose another folder with --folder"
        raise UserError("another server uses this folder", where=str(settings.folder), fix=fix) from error
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
                time.sleep(_POLL_SECONDS)


def upgrade(database: str) -> None:
    """Upgrade the schemas of MLflow and its authentication to the installed version.

    Raises:
        UserError: A migration failed; the schema stays at the last successful one.
    """
    for program in _UPGRADES:
        environment = {**os.environ, DATABASE: database}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1].replace(database, "the database")
            raise UserError(f"the database upgrade failed: {last[:300]}", fix="Restore the backup")


@contextmanager
def _database(settings: ServerSettings) -> Iterator[str]:
    if settings.database is None:
        with private_cluster(settings.folder) as address:
            write_secret(settings.folder / "database-address", address)
            yield address
        return
    scheme, separator, rest = settings.database.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        fix = "Write postgresql://USER:PASSWORD@HOST/DATABASE, or unset it for a private PostgreSQL"
        raise UserError("not the address of a PostgreSQL database", where=f"${DATABASE}", fix=fix)
    yield f"{scheme.replace('postgres', 'postgresql') if scheme == 'postgres' else scheme}://{rest}"


def _require_database(database: str) -> None:
    """Check that the database accepts a connection; errors do not show the password."""
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
        text = str(getattr(error, "orig", None) or error).strip()
        reason = (text.splitlines() or ["no message"])[0]
        fix = "Check host, user, password and that the database exists"
        raise UserError(f"the database refuses: {reason[:300]}", where=f"${DATABASE}", fix=fix) from error


def _environment(settings: ServerSettings, database: str) -> dict[str, str]:
    """Return the server's environment: secrets are here and in files of mode 600, never on a command line."""
    config = settings.folder / "basic_auth.ini"
    escaped = database.replace("%", "%%")  # configparser interpolates
    write_secret(config, _CONFIG.format(permission=settings.permission, database=escaped, admin=ADMIN))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "TEXTMILL_"))}
    return {
        **kept,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": _admin_password(settings),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": read_or_create_secret(settings.folder / "session-key"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Background jobs serve MLflow's agent and trace features, which Textmill does not use.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
    }


def _admin_password(settings: ServerSettings) -> str:
    """Return the password for creating the user admin; MLflow wants one at later starts too, without effect."""
    if password := os.environ.get(ADMIN_PASSWORD):
        settings.password_given.touch(mode=0o600)
        return password
    if settings.password_given.exists() and not settings.password_file.exists():
        return secrets.token_urlsafe()
    return read_or_create_secret(settings.password_file)


@contextmanager
def _process(settings: ServerSettings, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mlflow server` in its own session, so that Ctrl-C reaches only this process."""
    artifacts = settings.artifacts or str(settings.folder / "artifacts")
    if settings.artifacts is None:  # exists before the first artifact, for backups; only the owner can read it
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
    """Wait for the first answer; return False if a signal arrives first."""
    end = time.monotonic() + _START_SECONDS
    while not stopped():
        if process.poll() is not None:
            raise _ended(settings)
        if time.monotonic() > end:
            raise UserError(f"the server did not answer in {_START_SECONDS} s", where=str(settings.log))
        try:
            with urllib.request.urlopen(f"{settings.address}/health", timeout=5):  # its own address  # nosec B310
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_SECONDS)
    return False


def _ended(settings: ServerSettings) -> UserError:
    """Return an error with the log's last message of a server that ended."""
    lines = settings.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines[-200:] if "Exception:" in line or "Error:" in line or line.startswith("Error")]
    last = (errors or lines or ["no message"])[-1].strip()
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
        raise UserError(f"cannot listen here ({error.strerror})", where=where, fix="Use another --port") from error


@contextmanager
def _stopped_by_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT or SIGTERM arrived.

    A `threading.Event` could deadlock: a second signal within the first one's handler waits for its lock.
    """
    arrived: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
