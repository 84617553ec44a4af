"""`UserError`, the exception for every error that a user can fix."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

_HIDDEN_AS = "***"
_SHORTEST_HIDDEN = 4  # to replace shorter values would only spoil the message
_hidden: set[str] = set()
_LOGIN = re.compile(r"(//[^/?#\s@:\[]*:)[^\s'\"]*(?<!})@|(https?://)[^/?#\s@:]+(?<!})@")


def hide(secret: str) -> None:
    """Let no message show this value, as it is or percent-encoded."""
    _hidden.update(form for form in (secret, quote(secret, safe=""), quote(secret)) if len(secret) >= _SHORTEST_HIDDEN)


def redacted(text: str) -> str:
    """Return a text without hidden values, and without the login of any address in it."""
    for secret in sorted(_hidden, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN_AS)
    return _LOGIN.sub(lambda login: f"{login[1] or login[2]}{_HIDDEN_AS}@", text)


class UserError(Exception):
    """An error in configuration, data or environment, reported in one line.

    Args:
        what: The problem, with the offending value.
        where: File and line, or configuration key.
        fix: Instruction that solves the problem.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        parts = [f"{where}: " if where else "", what.rstrip("."), f". {fix.rstrip('.')}" if fix else "", "."]
        super().__init__(redacted(" ".join("".join(parts).split())))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that suggests the most similar `known` name; empty if no name is similar."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


_DISK_FULL = ("no space left on device", "disk is full", "disk full")
_AGAIN = "run the command again; earlier outputs are unchanged"


def disk_full(path: Path, needed: int = 0, then: str = _AGAIN) -> UserError:
    """Return the error of a full disk: the file or folder that does not fit, and the space it needs.

    Args:
        path: What was written.
        needed: Least size of it in bytes; 0 if nothing is known.
        then: Instruction for when space is free.
    """
    free = free_space(path)
    lacks = f"at least {_megabytes(needed - free)}" if needed - free >= 1e5 else "some space"
    needs = f", at least {_megabytes(needed)} needed" if needed else ""
    where, fix = str(path), f"Free {lacks} there and {then}"
    return UserError(f"the disk is full: {_megabytes(free)} free{needs}", where=where, fix=fix)


@contextmanager
def name_full_disk(path: Path, needed: int) -> Iterator[None]:
    """Delete the file `path` of `needed` bytes and name it, if the disk is full while it is written.

    Raises:
        UserError: The disk is full.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            path.unlink(missing_ok=True)
            raise disk_full(path, needed) from error
        raise


def free_space(path: Path) -> int:
    """Return the free bytes of the disk that `path` is on or would be on."""
    folders = (path.absolute(), *path.absolute().parents)
    return shutil.disk_usage(next(folder for folder in folders if folder.is_dir())).free


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def from_os_error(error: OSError) -> UserError:
    """Convert an operating-system error to a `UserError`."""
    where = str(error.filename) if error.filename else None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "Change the permissions or choose another path"
        return UserError(f"cannot read or write ({error.strerror})", where=where, fix=fix)
    if error.errno == errno.ENOENT:
        return UserError("no such file or folder", where=where, fix="Check the path, or run `dvc repro` to create it")
    return UserError(error.strerror or str(error), where=where)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, the latest first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def is_disk_full(error: BaseException) -> bool:
    """Return whether a full disk is the cause and no `UserError` says so yet.

    Read the texts too: safetensors, SQLite and PyTorch raise errors of their own.
    """
    chain = list(causes(error))
    return not any(isinstance(cause, UserError) for cause in chain) and any(
        getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        or any(sign in str(cause).lower() for sign in _DISK_FULL)
        for cause in chain
    )


def full_path(error: BaseException, *folders: Path) -> Path:
    """Return what was written when a disk was full: the path in the error, or the fullest of `folders` and $TMPDIR."""
    # Of a copy, the second name is what was written.
    named = (getattr(cause, name, None) for cause in causes(error) for name in ("filename2", "filename"))
    candidates = [Path(os.fsdecode(name)) for name in named if isinstance(name, str | bytes) and name]
    return candidates[0] if candidates else min([*folders, Path(tempfile.gettempdir())], key=free_space)


def translate(error: BaseException) -> UserError | None:
    """Return the `UserError` behind `error`, or None for a bug in the program."""
    if known := next((cause for cause in causes(error) if isinstance(cause, UserError)), None):
        return known
    if is_disk_full(error):
        return disk_full(full_path(error, Path.cwd()))
    return from_os_error(error) if isinstance(error, OSError) else None


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Exit with status 1 and a one-line message after an error that the user can fix."""
    try:
        yield
    except Exception as error:
        user_error = translate(error)
        if user_error is None:
            raise
        sys.stderr.write(f"{program}: error: {user_error}\n")
        sys.exit(1)
