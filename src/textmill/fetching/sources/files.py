"""Copy the user's own files, local or at any address that fsspec supports."""

from __future__ import annotations

import glob
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field

from textmill.config.secrets import STORAGE_OPTIONS, reveal
from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.errors import UserError, redacted
from textmill.fetching.sources.archives import open_archive
from textmill.fetching.sources.base import Provenance, Source, Split
from textmill.fetching.sources.local import check_digest, places
from textmill.files import folder_digests, sha256_folder

_WEB = ("http://", "https://")
_ABOUT = re.compile(r"(?i)(readme|licen[cs]e|changelog)(\..*)?|dataset_(info|dict)\.json|state\.json")


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Addresses = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


class FilesSourceConfig(Section):
    """Options: addresses, digests and licence.

    Attributes:
        files: Split -> a path, folder, glob or fsspec address (`s3://bucket/part-*.parquet`), or a list
            of them. Paths are relative to the project's folder.
        sha256: File name -> its digest, for files that must not change unnoticed.
        storage_options: Options for fsspec, such as a login. Secrets are references: `${secret:NAME}`.
    """

    files: Annotated[dict[Split, Addresses], Field(min_length=1)]
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    licence: str | None = None
    storage_options: dict[str, Any] = Field(default_factory=dict)


class FilesSource(Source):
    """Copy local or remote files."""

    Config: ClassVar[type[Section]] = FilesSourceConfig
    config: FilesSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Copy every file into `destination/SPLIT/`; see `Source.fetch`."""
        for split, addresses in self.config.files.items():
            folder = destination / split
            folder.mkdir()
            for address in addresses:
                revealed = without_scheme(reveal(address, "fetch.source.files"))
                if "://" in revealed:
                    self._copy_remote(address, revealed, folder)
                else:
                    _copy_local(without_scheme(address), folder, root)
        self._check_digests(destination)
        for path in [path for path in destination.rglob("*") if path.is_file()]:
            _unpack(path)
        digests = folder_digests(destination)
        digest = next(iter(digests.values())) if len(digests) == 1 else sha256_folder(destination)
        origin = ", ".join(address for addresses in self.config.files.values() for address in addresses)
        return Provenance(redacted(origin), None, self.config.licence, digest)

    def _copy_remote(self, address: str, revealed: str, folder: Path) -> None:
        """Copy the files at a `revealed` address; messages show the `address` as configured."""
        import fsspec

        options = reveal(self.config.storage_options, f"fetch.source.{STORAGE_OPTIONS}")
        try:
            filesystem, path = fsspec.core.url_to_fs(revealed, **options)
            # The ? of a web address begins its query
            pattern = path.partition("?")[0] if revealed.startswith(_WEB) else path
            literal = not glob.has_magic(pattern) or filesystem.isfile(path)
            files = {path: ""} if literal else dict.fromkeys(sorted(filesystem.glob(path)), "")
            if not revealed.startswith(_WEB):
                for each in [each for each in files if filesystem.isdir(each)]:
                    del files[each]
                    files |= {name: name.removeprefix(each).strip("/") for name in filesystem.find(each)}
            for remote, inner in files.items():
                if not is_hidden(inner):
                    filesystem.get_file(remote, str(_target(folder, remote, inner)))
        except UserError:
            raise
        except Exception as error:  # every fsspec backend raises exceptions of its own libraries
            raise UserError(f"cannot be fetched ({type(error).__name__}: {error})", where=address) from error
        if not files:
            raise UserError("no file matches", where=address)

    def _check_digests(self, destination: Path) -> None:
        by_name = {path.name: path for path in destination.rglob("*") if path.is_file()}
        for name, expected in self.config.sha256.items():
            if name not in by_name:
                raise UserError(f"no file {name!r} among {', '.join(sorted(by_name))}", where="fetch.source.sha256")
            check_digest(by_name[name], expected, name)


def without_scheme(address: str) -> str:
    """Return the path of a `file://` address, its escapes decoded unless a file has them; any other address as is."""
    path = re.sub(r"^file://(localhost)?(?=/)", "", address)
    return path if path == address or Path(path).exists() else unquote(path)


def _copy_local(pattern: str, folder: Path, root: Path) -> None:
    for place in places(root):
        files = {path: inner for name in _matches(pattern, place) for path, inner in _files(place / name)}
        if files:
            break
    else:
        message = "no file matches" if glob.has_magic(pattern) else "no such file"
        raise UserError(message, where=pattern, fix="Check the path; it is relative to the project's folder")
    for path, inner in files.items():
        shutil.copyfile(path, _target(folder, path.as_posix(), inner))


def _matches(pattern: str, root: Path) -> list[str]:
    if (root / pattern).exists():  # a name may have brackets
        return [pattern]
    # Path.glob does not accept absolute patterns
    return sorted(glob.glob(pattern, root_dir=root, recursive=True))  # noqa: PTH207


def _files(path: Path) -> list[tuple[Path, str]]:
    """Return a file, or all files of a folder with their paths in it, without those that Spark and editors hide."""
    if path.is_file():
        return [(path, "")]
    inner = {each: each.relative_to(path).as_posix() for each in sorted(path.rglob("*")) if each.is_file()}
    return [(each, name) for each, name in inner.items() if not is_hidden(name)]


def is_hidden(name: str) -> bool:
    """Return whether a file of a folder or archive is none of the data: hidden, or one that describes them."""
    *_, last = parts = name.split("/")
    return any(part.startswith(("_", ".")) for part in parts) or _ABOUT.fullmatch(last) is not None


def _target(folder: Path, path: str, inner: str) -> Path:
    if path.startswith(_WEB):
        path = unquote(urlsplit(path).path)  # a query, which may hold a token, is not part of the name
    target = folder / (inner or redacted(PurePosixPath(path).name))
    if target.exists():
        raise UserError(f"two files are named {target.name!r} in the split {folder.name!r}", fix="Rename one of them")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def is_workbook(path: Path) -> bool:
    """Return whether a zip file is a workbook of Excel or of OpenDocument."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return bool({"xl/workbook.xml", "xl/workbook.bin", "mimetype"} & set(archive.namelist()))


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar file, or a zip file that is not a workbook."""
    if zipfile.is_zipfile(path):
        return not is_workbook(path)
    try:
        return path.is_file() and tarfile.is_tarfile(path)
    except (EOFError, zlib.error, lzma.LZMAError):  # a damaged compressed file, which its reader reports
        return False


def _unpack(archive: Path) -> None:
    """Replace an archive of several files by a folder of them; one compressed file is read as it is."""
    if not is_archive(archive):
        return
    with open_archive(archive) as opened:
        names = [name for name in opened.names if not is_hidden(name)]
        if not names or (zipfile.is_zipfile(archive) and len(names) == len(opened.names) == 1):
            return  # a block of zeros is an empty tar file too
        folder = archive.with_name(archive.name + "~")
        for name in names:
            if name.startswith("/"):
                raise UserError(f"has an absolute path {name!r}", where=archive.name)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(name) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    archive.unlink()
    folder.rename(archive.with_name(archive.name.partition(".")[0]))
