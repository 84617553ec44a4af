"""A real `textmill server` with PostgreSQL, users included."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from support.project import Project
from support.system_packages import require_package
from support.tiny_export import wait_for
from textmill.registry.server.postgres import free_port

PASSWORDS = {"ada": "her password is long", "ben": "his password is long"}


@dataclass(frozen=True)
class TeamServer:
    """A server that runs, and where its files lie."""

    address: str
    folder: Path
    output: Path
    process: subprocess.Popen[bytes]

    def environment(self, user: str) -> dict[str, str]:
        """What a member of the team sets."""
        return {
            "MLFLOW_TRACKING_URI": self.address,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.password(user),
        }

    def password(self, user: str) -> str:
        """The admin's password from its file, or a member's."""
        return PASSWORDS.get(user) or (self.folder / "admin-password").read_text().strip()


@dataclass(frozen=True)
class Team:
    """A server, and the project whose pipeline runs against it."""

    server: TeamServer
    project: Project


@contextmanager
def team_server(folder: Path, *options: str, **environment: str) -> Iterator[TeamServer]:
    """Start `textmill server` in a folder, wait until it answers, and stop it as Ctrl-C would."""
    require_package("postgresql", "/usr/lib/postgresql/*/bin/initdb")
    port = free_port()
    command = [str(Path(sys.executable).parent / "textmill"), "server", "--folder", str(folder), "--workers", "1"]
    command += ["--port", str(port), *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "TEXTMILL"))}
    output = folder.with_name(f"{folder.name}.output")
    with output.open("ab") as file:
        process = subprocess.Popen(command, cwd="/", stdout=file, stderr=file, env={**kept, **environment})
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield TeamServer(f"http://127.0.0.1:{port}", folder, output, process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            elif process.returncode:
                print(f"the server ended by itself: {output.read_text()}")  # shown beside the failed test
            process.wait(90)


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A new folder that the user postgres can enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="textmill-server-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def add_users(server: TeamServer) -> None:
    """The members of the team, made by the admin."""
    for user, password in PASSWORDS.items():
        answer = requests.post(
            f"{server.address}/api/2.0/mlflow/users/create",
            json={"username": user, "password": password},
            auth=("admin", server.password("admin")),
            timeout=30,
        )
        answer.raise_for_status()
