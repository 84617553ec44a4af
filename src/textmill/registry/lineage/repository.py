"""Read a project's git repository: commits, their files, and the `dvc.lock` with a given digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from textmill.errors import UserError
from textmill.registry.runs.git import git, git_bytes
from textmill.registry.runs.origin import lock_digest

LOCK = "dvc.lock"


@dataclass(frozen=True)
class LockFile:
    """A `dvc.lock` and its location.

    Attributes:
        text: Its content.
        commit: The commit that contains it, or None.
        where: The location, as a phrase.
    """

    text: str
    commit: str | None
    where: str

    @classmethod
    def if_matching(cls, text: str, digest: str, commit: str | None, where: str) -> LockFile | None:
        """Return the lock if its digest without the stage `register` matches, else None."""
        try:
            same = lock_digest(text, "register") == digest
        except (yaml.YAMLError, UserError, AttributeError, RecursionError):
            return None
        return cls(text, commit, where) if same else None

    @cached_property
    def stages(self) -> dict[str, Any]:
        """Stage name -> entry of the lock."""
        return dict((yaml.safe_load(self.text) or {}).get("stages", {}))

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """Path -> entry (digest, size) of every output."""
        return {out["path"]: out for entry in self.stages.values() for out in entry.get("outs", [])}


class Repository:
    """The git repository that contains the folder `root`. Without one, all methods return empty results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *arguments: str) -> str | None:
        """Return the output of a git command, or None if it fails or there is no git or repository."""
        return git(self.root, *arguments)

    @cached_property
    def exists(self) -> bool:
        """Whether `root` is in a repository that has a commit."""
        return self.git("rev-parse", "--verify", "--quiet", "HEAD") is not None

    def has_commit(self, commit: str) -> bool:
        """Return whether the commit is in this repository."""
        return self.git("cat-file", "-e", f"{commit}^{{commit}}") is not None

    def subject(self, commit: str) -> str:
        """Return the first line of the commit message; empty if the commit does not exist."""
        return (self.git("log", "-1", "--format=%s", commit) or "").strip()

    def file(self, commit: str, path: str) -> bytes | None:
        """Return a file of a commit, by its path relative to `root`."""
        return git_bytes(self.root, "show", f"{commit}:./{path}")

    def blobs(self, commit: str, folder: str) -> dict[str, str]:
        """Return the files of a folder (or the file) in a commit: relative path -> git's content digest."""
        listing = self.git("ls-tree", "-r", "-z", commit, "--", folder) or ""
        blobs = {}
        for line in filter(None, listing.split("\0")):
            entry, path = line.split("\t", 1)
            mode, kind, digest = entry.split()
            if kind == "blob" and mode != "120000":
                blobs[path.removeprefix(folder).lstrip("/")] = digest
        return blobs

    def ignores(self, path: str) -> bool:
        """Return whether git ignores new files at this path."""
        return self.git("check-ignore", "--quiet", "--no-index", path) is not None

    def find_lock(self, digest: str, first: str | None = None) -> LockFile | None:
        """Return the `dvc.lock` whose digest without the stage `register` is `digest`, or None.

        Searches the commit `first`, every commit of a branch, tag or DVC experiment that changed the lock, and
        the working folder. DVC writes the lock while the pipeline runs: usually the commit after the one
        that was checked out contains it.
        """
        commits = [first] if first else []
        commits += (self.git("log", "--all", "--format=%H", "--", LOCK) or "").split()
        for commit in commits:
            content = self.file(commit, LOCK)
            text = content.decode("utf-8", "replace") if content is not None else ""
            if lock := LockFile.if_matching(text, digest, commit, f"commit {commit[:12]}"):
                return lock
        file = self.root / LOCK
        if not file.is_file():
            return None
        return LockFile.if_matching(file.read_text(encoding="utf-8"), digest, None, "the working folder")


def blob_digest(content: bytes, like: str) -> str:
    """Return git's digest of a file's content, by the algorithm of the digest `like`."""
    algorithm = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
