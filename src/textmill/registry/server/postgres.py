"""A private PostgreSQL cluster: its own folder, a loopback port, a random password."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textmill.errors import UserError
from textmill.registry.server.secret_files import read_or_create_secret

USER = "textmill"
DATABASE = "textmill"

_INSTALL = (
    "Set $TEXTMILL_DATABASE=postgresql://USER:PASSWORD@HOST/DATABASE, or install PostgreSQL"
    " (Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql)"
)
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
_SECONDS = 60


@contextmanager
def private_cluster(folder: Path) -> Iterator[str]:
    """Start the cluster in `folder`, created on first use; yield its database's address; stop it on exit.

    The address contains the password. A cluster left running by a killed server is taken over.

    Raises:
        UserError: PostgreSQL is not installed, does not start, or has another major version than the cluster.
    """
    data = folder / "postgres"
    binaries = _binaries(data)
    account = _account(folder)
    password = read_or_create_secret(folder / "database-password")
    if not data.exists():
        _initialise(binaries, data, password, account)
    if _run([binaries / "pg_ctl", "--pgdata", data, "status"], account, check=False).returncode == 0:
        _stop(binaries, data, account)
    port = free_port()
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories=''"
    log = data / "postgres.log"
    start: list[Any] = [binaries / "pg_ctl", "--pgdata", data, "--log", log, "--wait", "--options", options, "start"]
    _run(start, account, explained_by=log)
    try:
        _ensure_database(port, password)
        yield f"postgresql://{USER}:{password}@127.0.0.1:{port}/{DATABASE}"
    finally:
        _stop(binaries, data, account)


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binaries(data: Path) -> Path:
    """Return the folder of PostgreSQL's programs; an existing cluster needs its own major version."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    for pattern in _PLACES:
        folders += [place for place in Path("/").glob(pattern.removeprefix("/")) if (place / "initdb").is_file()]
    if not folders:
        raise UserError("no database for the server, and PostgreSQL is not installed", fix=_INSTALL)
    versions = {_major(place): place for place in reversed(folders)}
    if not data.exists():
        return versions[max(versions)]
    made_by = int((data / "PG_VERSION").read_text().split(".")[0])
    if made_by not in versions:
        raise UserError(
            f"the cluster needs PostgreSQL {made_by}; installed: {', '.join(map(str, sorted(versions)))}",
            where=str(data),
            fix=f"Install PostgreSQL {made_by}, or restore a backup into a new folder (docs/team-server.md)",
        )
    return versions[made_by]


def _major(place: Path) -> int:
    output = subprocess.run([place / "postgres", "--version"], capture_output=True, text=True).stdout
    number = re.search(r"(\d+)", output)
    return int(number[1]) if number else 0


def _account(folder: Path) -> dict[str, Any]:
    """Return the account that runs PostgreSQL, as options of `subprocess.run`: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    account: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []}
    folder.chmod(0o711)
    try:
        reachable = subprocess.run(["test", "-x", folder], **account).returncode == 0
    except (KeyError, LookupError, ValueError) as error:
        fix = "Start the server as an ordinary user"
        raise UserError("PostgreSQL refuses to run as root, and there is no user postgres", fix=fix) from error
    if not reachable:
        raise UserError(
            "the user postgres cannot enter this folder, and PostgreSQL refuses to run as root",
            where=str(folder),
            fix="Start the server as an ordinary user, or choose a folder with --folder, for example /var/lib/textmill",
        )
    return account


def _initialise(binaries: Path, data: Path, password: str, account: dict[str, Any]) -> None:
    """Create the cluster; an interruption leaves none."""
    partial = data.with_name(data.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=partial.parent, prefix=".password-") as file:
        file.write(password)
        file.flush()
        if account:
            shutil.chown(partial, account["user"], account["group"])
            shutil.chown(file.name, account["user"], account["group"])
        command: list[Any] = [binaries / "initdb", "--pgdata", partial, "--username", USER, "--pwfile", file.name]
        command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-instructions"]
        _run(command, account)
    partial.rename(data)


def _stop(binaries: Path, data: Path, account: dict[str, Any]) -> None:
    _run([binaries / "pg_ctl", "--pgdata", data, "--mode", "fast", "--wait", "stop"], account, check=False)


def _run(
    command: list[Any], account: dict[str, Any], *, check: bool = True, explained_by: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run one of PostgreSQL's programs; on failure raise an error with its last line.

    The output goes to a file, because the server that `pg_ctl` starts would keep a pipe open.
    """
    with tempfile.TemporaryFile() as output:
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            timeout=_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
            **account,
        )
        output.seek(0)
        text = output.read().decode(errors="replace")
    if check and done.returncode:
        if explained_by is not None and explained_by.is_file():
            text = explained_by.read_text(errors="replace")
        lines = [line for line in text.splitlines() if "FATAL" in line or "error" in line] or text.splitlines()
        last = lines[-1].strip() if lines else "no message"
        raise UserError(f"PostgreSQL's {Path(command[0]).name} failed: {last[:300]}", where=str(explained_by or ""))
    return done


def _ensure_database(port: int, password: str) -> None:
    import psycopg
    from psycopg import sql

    address = f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
    with psycopg.connect(address, autocommit=True) as connection:
        exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
        if exists is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
