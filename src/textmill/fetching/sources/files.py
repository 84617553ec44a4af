"""Copy the user's own files, local or at any address that fsspec supports."""

from __future__ import annotations

import glob
import shutil
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field

from textmill.config.secrets import STORAGE_OPTIONS, reveal
from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.errors import UserError, redacted
from textmill.fetching.sources.base import Provenance, Source, Split
from textmill.fetching.sources.local import check_digest, places


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Addresses = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


class FilesSourceConfig(Section):
    """Options: addresses, digests and licence.

    Attributes:
        files: Split -> a path, glob or fsspec address (`s3://bucket/part-*.parquet`), or a list
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
                revealed = reveal(address, "fetch.source.files")
                if "://" in revealed:
                    self._copy_remote(address, revealed, folder)
                else:
                    _copy_local(address, folder, root)
        self._check_digests(destination)
        origin = ", ".join(address for addresses in self.config.files.values() for address in addresses)
        return Provenance(redacted(origin), None, self.config.licence, None)

    def _copy_remote(self, address: str, revealed: str, folder: Path) -> None:
        """Copy the files at a `revealed` address; messages show the `address` as configured."""
        import fsspec

        options = reveal(self.config.storage_options, f"fetch.source.{STORAGE_OPTIONS}")
        try:
            filesystem, path = fsspec.core.url_to_fs(revealed, **options)
            paths = sorted(filesystem.glob(path)) if glob.has_magic(path) else [path]
            for remote in paths:
                filesystem.get_file(remote, str(_target(folder, remote)))
        except UserError:
            raise
        except Exception as error:  # every fsspec backend raises exceptions of its own libraries
            raise UserError(f"cannot be fetched ({type(error).__name__}: {error})", where=address) from error
        if not paths:
            raise UserError("no file matches", where=address)

    def _check_digests(self, destination: Path) -> None:
        by_name = {path.name: path for path in destination.rglob("*") if path.is_file()}
        for name, expected in self.config.sha256.items():
            if name not in by_name:
                raise UserError(f"no file {name!r} among {', '.join(sorted(by_name))}", where="fetch.source.sha256")
            check_digest(by_name[name], expected, name)


def _copy_local(pattern: str, folder: Path, root: Path) -> None:
    for place in places(root):
        files = [path for name in _matches(pattern, place) if (path := place / name).is_file()]
        if files:
            break
    else:
        message = "no file matches" if glob.has_magic(pattern) else "no such file"
        raise UserError(message, where=pattern, fix="Check the path; it is relative to the project's folder")
    for path in files:
        shutil.copyfile(path, _target(folder, path.as_posix()))


def _matches(pattern: str, root: Path) -> list[str]:
    # Path.glob does not accept absolute patterns
    return sorted(glob.glob(pattern, root_dir=root, recursive=True))  # noqa: PTH207


def _target(folder: Path, path: str) -> Path:
    if path.startswith(("http://", "https://")):
        path = unquote(urlsplit(path).path)  # a query, which may hold a token, is not part of the name
    target = folder / redacted(PurePosixPath(path).name)
    if target.exists():
        raise UserError(f"two files are named {target.name!r} in the split {folder.name!r}", fix="Rename one of them")
    return target
