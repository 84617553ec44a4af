"""Read members of tar and zip archives without unpacking, so that no member's path is ever followed."""

from __future__ import annotations

import errno
import fnmatch
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from textmill.errors import UserError

_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    NotImplementedError,  # a zip file with a kind of compression that Python lacks
)
_ENCRYPTED = 0x1
_ALWAYS_ALLOWED = 256 << 20
_MAX_RATIO = 200
_HEADER_BYTES = 4096  # what a file costs at least: a million empty files are a bomb too


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
        UserError: The file is not an archive, damaged or encrypted, or it unpacks to far more than its size.
    """
    try:
        with _opened(path.open("rb"), path.name, path.stat().st_size) as archive:
            if inner is None:
                yield archive
                return
            [name] = archive.matching([inner])
            with archive.open(name) as file:
                content = io.BytesIO(file.read())
            with _opened(content, f"{path.name}:{name}", content.getbuffer().nbytes) as nested:
                yield nested
    except _DAMAGED as error:
        raise UserError(f"is not a readable archive ({error})", where=path.name) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(
            f"is not a readable archive ({error})", where=path.name
        ) from error  # damage, as bz2 and zipfile tell it


@contextmanager
def _opened(file: IO[bytes], label: str, packed: int) -> Iterator[Archive]:
    with file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as zipped:
                infos = [info for info in zipped.infolist() if not info.is_dir()]
                if any(info.flag_bits & _ENCRYPTED for info in infos):
                    raise UserError("is encrypted", where=label, fix="Use an archive without a password")
                _limit((info.file_size for info in infos), packed, label)
                yield Archive(label, [info.filename for info in infos], zipped.open)
        else:
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                members: dict[str, tarfile.TarInfo] = {}
                # One by one, so that nothing is decompressed to look behind a member that is too large
                _limit((members.setdefault(member.name, member).size for member in tar), packed, label)
                files = {name: member for name, member in members.items() if member.isreg()}
                yield Archive(label, list(files), lambda name: cast("IO[bytes]", tar.extractfile(files[name])))


def _limit(sizes: Iterable[int], packed: int, label: str) -> None:
    """Refuse an archive that unpacks to more than `unpacked_limit`, by the sizes that it declares."""
    limit, total = unpacked_limit(packed), 0
    for size in sizes:
        total += size + _HEADER_BYTES
        if total > limit:
            what = f"unpacks to more than {limit >> 20} MiB, {packed >> 10} KiB packed"
            raise UserError(what, where=label, fix="If you trust it, unpack it yourself and name the files")


def unpacked_limit(packed: int) -> int:
    """Return how many bytes a compressed file may unpack to: texts shrink to a tenth, bombs to a thousandth."""
    return max(_ALWAYS_ALLOWED, _MAX_RATIO * packed)
