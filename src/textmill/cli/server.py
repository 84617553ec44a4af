"""`textmill server`: run MLflow for a team."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option

from textmill.cli.output import print_json

if TYPE_CHECKING:
    from textmill.registry.server.server import ServerSettings

Permission = Literal["NO_PERMISSIONS", "READ", "EDIT", "MANAGE"]


def server(
    host: Annotated[str, Option(help="Address to listen on; put TLS in front for other machines.")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    folder: Annotated[
        Path | None, Option(help="Secrets, logs, artifacts and private database. Default: .dvc/tmp/textmill/server.")
    ] = None,
    artifacts: Annotated[
        str | None, Option(help="Artifact store, such as s3://bucket. Default: a folder in --folder.")
    ] = None,
    workers: Annotated[int, Option(min=1, help="Number of server processes.")] = 2,
    permission: Annotated[Permission, Option(help="Permission of every user on the work of others.")] = "EDIT",
    allowed_hosts: Annotated[
        str | None, Option(help="Host names, separated by commas, under which a proxy calls the server.")
    ] = None,
    upgrade: Annotated[
        bool, Option("--upgrade", help="First upgrade the database schema to the installed MLflow.")
    ] = False,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON document with the address once the server is ready.")
    ] = False,
) -> None:
    """Run MLflow for a team: PostgreSQL, proxied artifacts, users and passwords. Ctrl-C stops it.

    The database is $TEXTMILL_DATABASE (postgresql://...), or else a private PostgreSQL in --folder.
    The first start creates the user admin. Its password is $TEXTMILL_ADMIN_PASSWORD, or else a
    random one in the file admin-password of --folder.

    Example: textmill server --folder /var/lib/textmill
    """
    from textmill.config.layout import find_layout
    from textmill.registry.server.server import DATABASE, ServerSettings, serve

    settings = ServerSettings(
        folder=(folder or find_layout().state / "server").expanduser().resolve(),
        host=host,
        port=port,
        workers=workers,
        database=os.environ.get(DATABASE) or None,
        artifacts=artifacts,
        permission=permission,
        allowed_hosts=allowed_hosts,
        upgrade=upgrade,
    )
    serve(settings, lambda: _announce_json(settings) if as_json else _announce(settings))
    if not as_json:
        print("Stopped.")


def _announce_json(settings: ServerSettings) -> None:
    from textmill.registry.server.server import ADMIN

    folder = settings.folder
    print_json(
        {
            "address": settings.address,
            "database": None if settings.database else str(folder / "postgres"),
            "artifacts": settings.artifacts or str(folder / "artifacts"),
            "log": str(settings.log),
            "user": ADMIN,
            "password_file": str(settings.password_file) if settings.password_file.is_file() else None,
        }
    )


def _announce(settings: ServerSettings) -> None:
    from textmill.registry.server.server import ADMIN, ADMIN_PASSWORD
    from textmill.serving.access import is_loopback

    kept = settings.password_file.is_file()
    password = f"in {_short(settings.password_file)}" if kept else f"as ${ADMIN_PASSWORD} on the first start"
    print(f"The server answers on {settings.address}", flush=True)
    print(f"  database   {'as $TEXTMILL_DATABASE' if settings.database else _short(settings.folder / 'postgres')}")
    print(f"  artifacts  {settings.artifacts or _short(settings.folder / 'artifacts')}")
    print(f"  log        {_short(settings.log)}")
    print(f"  user       {ADMIN}, password {password}")
    if not is_loopback(settings.host):
        print("  Passwords are sent unencrypted: put TLS in front (docs/team-server.md).")
    print("Each team member sets:")
    print(f"  export MLFLOW_TRACKING_URI={settings.address}")
    print("  export MLFLOW_TRACKING_USERNAME=...  MLFLOW_TRACKING_PASSWORD=...", flush=True)


def _short(path: Path) -> str:
    """Return a path relative to the working directory, where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
