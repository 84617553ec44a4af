"""Secrets in files that only their owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from textmill.errors import UserError

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
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    partial.replace(path)
