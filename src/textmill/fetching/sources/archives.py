"""Read members of tar and zip archives without unpacking, so that no member's path is ever followed."""

from __future__ import annotations

import fnmatch
import io
import shutil
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from textmill.errors import UserError


class Archive(ABC):
    """An open archive: names and bytes of its regular files."""

    def __init__(self, label: str) -> None:
        self.label = label

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Paths of the regular files, in the archive's order."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""

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


class _Tar(Archive):
    def __init__(self, tar: tarfile.TarFile, label: str) -> None:
        super().__init__(label)
        self._tar = tar
        self._members = {member.name: member for member in tar.getmembers() if member.isreg()}

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def open(self, name: str) -> IO[bytes]:
        opened = self._tar.extractfile(self._members[name])
        assert opened is not None, "only regular files are listed"
        return opened


class _Zip(Archive):
    def __init__(self, zipped: zipfile.ZipFile, label: str) -> None:
        super().__init__(label)
        self._zip = zipped

    @property
    def names(self) -> list[str]:
        return [info.filename for info in self._zip.infolist() if not info.is_dir()]

    def open(self, name: str) -> IO[bytes]:
        return self._zip.open(name)


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
                yield _Zip(zipped, label)
        else:
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                yield _Tar(tar, label)
