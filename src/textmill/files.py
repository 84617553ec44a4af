"""Write files and folders atomically; compute SHA-256 digests."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from textmill.errors import UserError, disk_full, full_path, is_disk_full

DIGESTS = "digests.json"  # of the files beside it, which it does not count as one of
_PARTIAL = ".partial-"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` when the block succeeds.

    The folder is beside `target`, so that the last step is a rename. If the block fails, the partial
    folder is deleted and an existing `target` is unchanged. After a kill, the next call deletes it.

    Raises:
        UserError: The disk is full.
    """
    partial, handle = _make_partial(target, folder=True)
    try:
        yield partial
        partial.chmod(0o755)
        _replace(partial, target)
    except Exception as error:
        if is_disk_full(error):
            place = full_path(error, partial)
            if partial not in (place, *place.parents):  # such as $TMPDIR: how much it lacks is not known
                raise disk_full(place) from error
            needed = max(size_of(partial), _last_size(target))
            shutil.rmtree(partial, ignore_errors=True)
            raise disk_full(target, needed) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(handle)


def atomic_write(target: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file by rename, so that a reader never sees partial content.

    Raises:
        UserError: The disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    partial, handle = _make_partial(target, folder=False)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            partial.chmod(mode)
            partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if is_disk_full(error) and not any(_PARTIAL in folder.name for folder in target.parents):
            raise disk_full(target, len(data)) from error
        raise


def remove_abandoned(folder: Path, name: str = "*") -> list[Path]:
    """Delete what killed processes left in `folder` while they wrote `name`; return the deleted paths.

    A living writer holds a lock on its partial file or folder, which the system releases at its death.
    """
    removed = []
    for partial in folder.glob(f".{name}{_PARTIAL}*"):
        with suppress(OSError):
            handle = os.open(partial, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
                removed.append(partial)
            finally:
                os.close(handle)
    return removed


def _make_partial(target: Path, *, folder: bool) -> tuple[Path, int]:
    """Create a partial file or folder beside `target`; return it with an open handle that locks it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent, glob.escape(target.name))
    prefix = f".{target.name}{_PARTIAL}"
    while True:
        if folder:
            partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            handle = os.open(partial, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, dir=target.parent)
            partial = Path(name)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if partial.exists():  # else another process took it for abandoned before it was locked
            return partial, handle
        os.close(handle)


def _replace(partial: Path, target: Path) -> None:
    """Rename a folder to `target`; what was there is `partial` afterwards, or gone."""
    if not target.exists():
        partial.rename(target)
    elif not _exchange(partial, target):
        old = partial.with_name(partial.name + ".old")
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; return False where the system cannot. A kill leaves one of both as `second`."""
    import ctypes

    with suppress(AttributeError, OSError):
        swap = ctypes.CDLL(None).renameat2
        return bool(swap(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)
    return False


def size_of(path: Path) -> int:
    """Return the size of a file, or of all files below a folder, in bytes."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def _last_size(target: Path) -> int:
    """Return the size of an output that stands there or that `dvc.lock` has of the last run; 0 if there is none."""
    if target.is_dir():
        return size_of(target)
    with suppress(OSError):
        lock = (target.parent.parent / "dvc.lock").read_text(encoding="utf-8")
        sizes = re.findall(rf"path: data/{re.escape(target.name)}\n(?: +\w+: .*\n)*? +size: (\d+)\n", lock)
        return max(map(int, sizes), default=0)
    return 0


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
    """Return the SHA-256 of every file below `folder` but `DIGESTS` by its relative path, sorted.

    What is neither a file nor a folder, such as a link to a folder, has an empty digest: nothing is read behind it.
    """
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        path.relative_to(folder).as_posix(): sha256_file(path) if path.is_file() else ""
        for path in sorted(files)
        if path != folder / DIGESTS
    }


def seal(folder: Path) -> None:
    """Note the digests of all files below `folder` in it."""
    write_json(folder / DIGESTS, folder_digests(folder))


def require_intact(folder: Path, fix: str) -> None:
    """Compare the files below `folder` with the digests that `seal` noted; a folder without them is let through.

    Raises:
        UserError: A file differs, is missing or was added.
    """
    if not (folder / DIGESTS).is_file():
        return
    noted, found = read_optional(folder / DIGESTS), folder_digests(folder)
    for name in sorted(noted.keys() | found.keys()):
        if noted.get(name) != found.get(name):
            what = "is missing" if name not in found else "was changed or damaged after it was written (digest differs)"
            raise UserError(f"the file {what}", where=str(folder / name), fix=fix)


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
