"""The one exception that stands for a mistake the user can mend."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in configuration, data or surroundings, told in one line.

    Args:
        what: What is wrong, in words, with the offending value.
        where: File and line, or configuration key.
        fix: What to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        parts = [f"{where}: " if where else "", what.rstrip("."), f". {fix.rstrip('.')}" if fix else "", "."]
        super().__init__(" ".join("".join(parts).split()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The beginning of a fix: a question for the nearest of the `known` names, or nothing when none is near."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


_DISK_FULL = ("no space left on device", "disk is full", "disk full")
_FREE_SPACE = "Free some space and run the same command again; earlier outputs are untouched"


def from_os_error(error: OSError) -> UserError:
    """Translate an operating-system error that a user can mend into a `UserError`."""
    where = str(error.filename) if error.filename else None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("the disk is full", where=where, fix=_FREE_SPACE)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "Change the permissions or choose another place"
        return UserError(f"cannot write or read here ({error.strerror})", where=where, fix=fix)
    if error.errno == errno.ENOENT:
        return UserError("no such file or folder", where=where, fix="Check the path, or run `dvc repro` to make it")
    return UserError(error.strerror or str(error), where=where)


def translate(error: BaseException) -> UserError | None:
    """What a user can mend behind `error`, or None where it is a fault of the program.

    Libraries wrap a full disk in errors of their own (safetensors, sqlite, PyTorch's writer), so
    the chain of causes and the texts are looked at too.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        text = str(cause).lower()
        if any(sign in text for sign in _DISK_FULL) or getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return UserError("the disk is full", where=getattr(cause, "filename", None), fix=_FREE_SPACE)
        cause = cause.__cause__ or cause.__context__
    return from_os_error(error) if isinstance(error, OSError) else None


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the process with status 1 and one line after an error that the user can mend."""
    try:
        yield
    except Exception as error:
        told = translate(error)
        if told is None:
            raise
        sys.stderr.write(f"{program}: error: {told}\n")
        sys.exit(1)
