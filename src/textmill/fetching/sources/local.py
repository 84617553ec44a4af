"""Helpers for sources of local files: find a file, check its digest, write rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import sha256_file


def places(root: Path) -> tuple[Path, Path]:
    """Return the folders that relative paths refer to, in the order in which they are searched.

    A temporary copy of the project (`dvc exp run --temp`) lacks the files that git ignores; its
    home has them.
    """
    return root, Layout(root).home


def find_file(name: str, root: Path) -> Path:
    """Find a file by its path relative to the project's folder.

    Raises:
        UserError: There is no such file.
    """
    for place in places(root):
        if (path := place / name).is_file():
            return path
    raise UserError("no such file", where=name, fix="Check the path; it is relative to the project's folder")


def check_digest(path: Path, expected: str, name: str) -> None:
    """Raise a `UserError` if the file's SHA-256 is not `expected`; the message calls the file `name`."""
    if (actual := sha256_file(path)) != expected:
        fix = "Restore the file, or update the digest if the change is intended"
        raise UserError(f"wrong digest {actual}, {expected} is required", where=name, fix=fix)


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write rows as JSON Lines, create the folder, and return the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
