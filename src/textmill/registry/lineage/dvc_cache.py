"""Reading DVC's cache: whether the outputs that a `dvc.lock` names are there, and what is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
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
        folder: With the objects, `ab/cdef...` for a digest `abcdef...`.
        has_remote: Whether the project names a place to pull missing objects from.
    """

    folder: Path
    has_remote: bool

    @classmethod
    def of(cls, root: Path) -> Cache:
        """The cache that the DVC repository at `root` uses.

        Raises:
            UserError: There is no DVC repository.
        """
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(str(root)) as repo:
                return cls(Path(repo.cache.local.path), bool(repo.config.get("remote")))
        except DvcException as error:
            raise UserError(f"no DVC repository ({error})", where=str(root)) from error

    def object(self, digest: str) -> Path:
        """Where the object with this MD5 lies, if it is there."""
        return self.folder / digest[:2] / digest[2:]

    def entries(self, output: dict[str, Any]) -> dict[str, str] | None:
        """Files of an output by path relative to it, with their MD5; "" is the path of a file's own.

        None when the list of a folder's files is not in the cache.
        """
        digest = str(output["md5"])
        if not digest.endswith(_FOLDER):
            return {"": digest}
        listing = self.object(digest)
        if not listing.is_file():
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}

    def problem(self, output: dict[str, Any]) -> tuple[str, bool] | None:
        """What is wrong with an output in the cache, and whether an object is just missing; None when all is well.

        Every object is read and its MD5 compared.
        """
        digest = str(output["md5"])
        if digest.endswith(_FOLDER):
            listing = self.object(digest)
            if listing.is_file() and f"{_md5(listing)}{_FOLDER}" != digest:
                return f"{output['path']}: the list of its files was changed in the cache", False
        entries = self.entries(output)
        if entries is None:
            return f"{output['path']} is not in the cache", True
        for path, expected in entries.items():
            name = f"{output['path']}/{path}".rstrip("/")
            file = self.object(expected)
            if not file.is_file():
                return f"{name} is not in the cache", True
            if _md5(file) != expected:
                return f"{name} was changed in the cache ({file})", False
        return None

    def sha256_of_folder(self, output: dict[str, Any], inside: str = "") -> str | None:
        """What `files.sha256_folder` gave for an output, or a folder inside it; None when it is not in the cache."""
        prefix = f"{inside}/" if inside else ""
        entries = self.entries(output)
        if entries is None:
            return None
        wanted = {path.removeprefix(prefix): md5 for path, md5 in entries.items() if path.startswith(prefix)}
        objects = {path: self.object(md5) for path, md5 in wanted.items()}
        if not all(file.is_file() for file in objects.values()):
            return None
        ordered = sorted(objects.items(), key=lambda item: Path(item[0]))
        lines = "".join(f"{sha256_file(file)}  {path}\n" for path, file in ordered)
        return hashlib.sha256(lines.encode()).hexdigest()

    def file_in(self, output: dict[str, Any], path: str) -> Path | None:
        """The object of one file in an output; None when it is not in the cache or not in the output."""
        digest = (self.entries(output) or {}).get(path)
        found = self.object(digest) if digest else None
        return found if found is not None and found.is_file() else None


def lend_cache(root: Path, checkout: Path) -> None:
    """Let a checkout of another commit use the cache and the remotes that the project at `root` has now.

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
    """DVC's digest of a folder, from the relative path and MD5 of each of its files."""
    entries = [{"md5": digest, "relpath": path} for path, digest in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + _FOLDER


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
