"""Secrets in files that only their owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from textmill.errors import UserError

_BYTES = 24


def kept_secret(path: Path) -> str:
    """The secret in a file of mode 600; a random one is made when there is no such file.

    Raises:
        UserError: Others may read the file, or it is empty.
    """
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(_BYTES))
    if path.stat().st_mode & 0o077:
        raise UserError("others may read this secret", where=str(path), fix=f"Run `chmod 600 {path}`")
    secret = path.read_text(encoding="utf-8").strip()
    if not secret:
        raise UserError("the secret is empty", where=str(path), fix="Write it into the file, or delete the file")
    return secret


def write_secret(path: Path, text: str) -> None:
    """Write a file that nobody else could read at any moment, by rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    partial.replace(path)
