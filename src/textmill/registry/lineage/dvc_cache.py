"""Read DVC's cache: check that the outputs of a `dvc.lock` exist, and read them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill.errors import UserError
from textmill.files import sha256_file

_FOLDER = ".dir"


@dataclass(frozen=True)
class Cache:
    """DVC's local cache.

    Attributes:
        root: Folder of the DVC repository.
        folder: Folder of the objects: `ab/cdef...` for the digest `abcdef...`.
        has_remote: Whether the project has a DVC remote.
    """

    root: Path
    folder: Path
    has_remote: bool

    @classmethod
    def of(cls, root: Path) -> Cache:
        """Return the cache of the DVC repository at `root`; raise UserError if there is none."""
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(str(root)) as repo:
                return cls(root, Path(repo.cache.local.path), bool(repo.config.get("remote")))
        except DvcException as error:
            raise UserError(f"no DVC repository ({error})", where=str(root)) from error

    def object(self, digest: str) -> Path:
        """Return the path of the object with this MD5; it may not exist."""
        return self.folder / digest[:2] / digest[2:]

    def is_damaged(self, digest: str) -> bool:
        """Return whether the object is here and its MD5 is not its name."""
        file = self.object(digest)
        return file.is_file() and file_md5(file) != digest.removesuffix(_FOLDER)

    def fetch(self, digests: Sequence[str]) -> None:
        """Fetch missing and damaged objects from DVC's remote.

        Raises:
            UserError: The remote does not answer, or lacks an object.
        """
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc_data.hashfile.hash_info import HashInfo

        for digest in filter(self.is_damaged, digests):
            self.object(digest).unlink()  # DVC fetches only what is not there
        missing = [digest for digest in dict.fromkeys(digests) if not self.object(digest).is_file()]
        log = logging.getLogger("dvc")
        level = log.level
        try:
            with Repo(str(self.root)) as repo:
                log.setLevel(logging.ERROR)  # it lists the objects that the remote lacks; the error below says so
                repo.cloud.pull({HashInfo("md5", digest) for digest in missing})
        except (DvcException, ImportError, OSError) as error:  # ImportError: no dvc-s3, say
            raise UserError(f"the DVC remote fails ({' '.join(str(error).split())[:200]})") from error
        finally:
            log.setLevel(level)
        if any(not self.object(digest).is_file() for digest in missing):
            raise UserError("the DVC remote does not have them")

    def entries(self, output: dict[str, Any]) -> dict[str, str] | None:
        """Return the files of an output: relative path ("" for a single file) -> MD5.

        None if the file list of a folder is not in the cache.
        """
        digest = str(output["md5"])
        if not digest.endswith(_FOLDER):
            return {"": digest}
        listing = self.object(digest)
        if not listing.is_file():
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}

    def problem(self, output: dict[str, Any]) -> tuple[str, bool] | None:
        """Return the problem of an output and whether its object is only missing; None without a problem.

        Reads every object and compares its MD5.
        """
        digest = str(output["md5"])
        if digest.endswith(_FOLDER) and self.is_damaged(digest):
            return f"{output['path']}: its file list was changed in the cache", False
        entries = self.entries(output)
        if entries is None:
            return f"{output['path']} is not in the cache", True
        for path, expected in entries.items():
            name = f"{output['path']}/{path}".rstrip("/")
            file = self.object(expected)
            if not file.is_file():
                return f"{name} is not in the cache", True
            if self.is_damaged(expected):
                return f"{name} was changed in the cache ({file})", False
        return None

    def sha256_of_folder(self, output: dict[str, Any], inside: str = "") -> str | None:
        """Return `files.sha256_folder` of an output, or of a folder inside it; None if it is not in the cache."""
        prefix = f"{inside}/" if inside else ""
        entries = self.entries(output)
        if entries is None:
            return None
        selected = {path.removeprefix(prefix): md5 for path, md5 in entries.items() if path.startswith(prefix)}
        objects = {path: self.object(md5) for path, md5 in selected.items()}
        if not all(file.is_file() for file in objects.values()):
            return None
        ordered = sorted(objects.items(), key=lambda item: Path(item[0]))
        lines = "".join(f"{sha256_file(file)}  {path}\n" for path, file in ordered)
        return hashlib.sha256(lines.encode()).hexdigest()

    def file_in(self, output: dict[str, Any], path: str) -> Path | None:
        """Return the object of one file of an output; None if it is not in the cache or not in the output."""
        digest = (self.entries(output) or {}).get(path)
        file = self.object(digest) if digest else None
        return file if file is not None and file.is_file() else None


def share_cache(root: Path, checkout: Path) -> None:
    """Configure a checkout to use the current cache and remotes of the project at `root`.

    The commit may be older than the remotes, and their addresses may be relative to the project.
    """
    from dvc.repo import Repo

    with Repo(str(root)) as project, Repo(str(checkout)) as other:
        present = project.config.read()
        with other.config.edit("local") as local:
            local["remote"] = present["remote"]
            local["core"] = present["core"]
            local["cache"] = {**present["cache"], "dir": str(Path(project.cache.local.path).parent.parent)}


def folder_md5(files: Iterable[tuple[str, str]]) -> str:
    """Return DVC's digest of a folder from the relative path and MD5 of each file."""
    entries = [{"md5": digest, "relpath": path} for path, digest in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + _FOLDER


def file_md5(path: Path) -> str:
    """Return the MD5 of a file's content, as DVC counts it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
