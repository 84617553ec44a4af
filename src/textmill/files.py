"""Write files and folders atomically; compute SHA-256 digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textmill.errors import UserError


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` when the block succeeds.

    The folder is beside `target`, so the final move is a rename. If the block fails, the partial
    folder is deleted and an existing `target` is unchanged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if target.exists():
            old = partial.with_name(partial.name + ".old")
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def atomic_write(target: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file by rename, so that a reader never sees partial content."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(target: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys, by rename."""
    atomic_write(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder` by its relative path, sorted.

    What is neither a file nor a folder, such as a link to a folder, has an empty digest: nothing is read behind it.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): sha256_file(path) if path.is_file() else "" for path in files}


def sha256_folder(folder: Path) -> str:
    """Return one SHA-256 over a folder's sorted relative paths and their digests."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in folder_digests(folder).items())
    return hashlib.sha256(lines.encode()).hexdigest()


def read_optional(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if the file does not exist."""
    try:
        return dict(read_json(path)) if path.is_file() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError("not a JSON object", where=str(path), fix="Delete it and run the command again") from error
