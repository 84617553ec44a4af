"""The one exception that stands for a mistake the user can mend."""

from __future__ import annotations

import errno


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


def from_os_error(error: OSError) -> UserError:
    """Translate an operating-system error that a user can mend into a `UserError`."""
    where = str(error.filename) if error.filename else None
    if error.errno == errno.ENOSPC:
        return UserError("the disk is full", where=where, fix="Free some space and run the same command again; earlier outputs are untouched")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write or read here ({error.strerror})", where=where, fix="Change the permissions or choose another place")
    if error.errno == errno.ENOENT:
        return UserError("no such file or folder", where=where, fix="Check the path, or run `dvc repro` to make it")
    return UserError(error.strerror or str(error), where=where)
