"""Secrets in files that only their owner can read."""

from __future__ import annotations

import secrets
from pathlib import Path

from textmill.errors import UserError
from textmill.files import atomic_write

_BYTES = 24


def read_or_create_secret(path: Path) -> str:
    """Return the secret in a file of mode 600; a missing file is created with a random one.

    Raises:
        UserError: Other users can read the file, or it is empty.
    """
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(_BYTES))
    if path.stat().st_mode & 0o077:
        raise UserError("other users can read this secret", where=str(path), fix=f"Run `chmod 600 {path}`")
    secret = path.read_text(encoding="utf-8").strip()
    if not secret:
        raise UserError("the secret is empty", where=str(path), fix="Write one into the file, or delete the file")
    return secret


def write_secret(path: Path, text: str) -> None:
    """Write a file atomically that only its owner can read at any moment."""
    atomic_write(path, text + "\n", mode=0o600)
