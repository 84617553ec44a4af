"""Read members of tar and zip archives without unpacking, so that no member's path is ever followed."""

from __future__ import annotations

import fnmatch
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from textmill.errors import UserError


@dataclass(frozen=True)
class Archive:
    """An open archive.

    Attributes:
        label: Name of the archive in messages.
        names: Paths of the regular files, in the archive's order.
        open: Opens one of these files for reading.
    """

    label: str
    names: list[str]
    open: Callable[[str], IO[bytes]]

    def matching(self, patterns: Sequence[str]) -> list[str]:
        """Return the names of the files that match the paths or globs, pattern by pattern.

        Raises:
            UserError: No file matches a pattern.
        """
        names: list[str] = []
        for pattern in patterns:
            matches = [name for name in self.names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
            if not matches:
                near = [name for name in self.names if PurePosixPath(name).name == PurePosixPath(pattern).name]
                fix = f"Did you mean {near[0]!r}?" if near else f"It contains {', '.join(self.names[:10])}"
                raise UserError(f"contains no file {pattern!r}", where=self.label, fix=fix)
            names += [name for name in matches if name not in names]
        return names

    def extract(self, names: Sequence[str], folder: Path) -> None:
        """Write files into `folder` under the last part of their paths.

        Raises:
            UserError: Two files have the same last part.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            target = folder / PurePosixPath(name).name
            if target.exists():
                fix = "Name only one of them"
                raise UserError(f"contains two files named {target.name!r}", where=self.label, fix=fix)
            with self.open(name) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


@contextmanager
def open_archive(path: Path, inner: str | None = None) -> Iterator[Archive]:
    """Open a `.tar.*`, `.tgz`, `.zip` or `.whl` file, or the archive `inner` in it.

    Raises:
        UserError: The file is not an archive, or damaged.
    """
    try:
        with _opened(path.open("rb"), path.name) as archive:
            if inner is None:
                yield archive
                return
            [name] = archive.matching([inner])
            with archive.open(name) as file:
                content = io.BytesIO(file.read())
            with _opened(content, f"{path.name}:{name}") as nested:
                yield nested
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"is not a readable archive ({error})", where=path.name) from error


@contextmanager
def _opened(file: IO[bytes], label: str) -> Iterator[Archive]:
    with file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as zipped:
                yield Archive(label, [info.filename for info in zipped.infolist() if not info.is_dir()], zipped.open)
        else:
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                members = {member.name: member for member in tar.getmembers() if member.isreg()}
                yield Archive(label, list(members), lambda name: cast("IO[bytes]", tar.extractfile(members[name])))
