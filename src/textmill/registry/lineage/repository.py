"""Reading a project's git repository: commits, the files in them, and the `dvc.lock` that a digest stands for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from textmill.registry.runs.git import git, git_bytes
from textmill.registry.runs.origin import lock_digest

LOCK = "dvc.lock"


@dataclass(frozen=True)
class FoundLock:
    """A `dvc.lock` and where it was found.

    Attributes:
        text: Its content.
        commit: That holds it, if one does.
        where: The place in words.
    """

    text: str
    commit: str | None
    where: str

    @classmethod
    def checked(cls, text: str, digest: str, commit: str | None, where: str) -> FoundLock | None:
        """The lock, if its digest without the stage `register` is the wanted one; else None."""
        try:
            same = lock_digest(text, "register") == digest
        except yaml.YAMLError:
            return None
        return cls(text, commit, where) if same else None

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The lock's entries by stage."""
        return dict((yaml.safe_load(self.text) or {}).get("stages", {}))

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """Every output of every stage by its path: digest, size."""
        return {out["path"]: out for entry in self.stages.values() for out in entry.get("outs", [])}


class Repository:
    """The git repository that holds `root`; every question has an answer where there is none.

    Args:
        root: The project's folder, which may lie below the repository's.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *arguments: str) -> str | None:
        """The output of a git command, or None when it failed or there is no git or repository."""
        return git(self.root, *arguments)

    @cached_property
    def exists(self) -> bool:
        """Whether `root` is in a repository that has a commit."""
        return self.git("rev-parse", "--verify", "--quiet", "HEAD") is not None

    def has_commit(self, commit: str) -> bool:
        """Whether the commit is in this repository."""
        return self.git("cat-file", "-e", f"{commit}^{{commit}}") is not None

    def subject(self, commit: str) -> str:
        """The first line of the commit's message; empty when it is not here."""
        return (self.git("log", "-1", "--format=%s", commit) or "").strip()

    def file(self, commit: str, path: str) -> bytes | None:
        """A file of a commit, by its path relative to `root`."""
        return git_bytes(self.root, "show", f"{commit}:./{path}")

    def blobs(self, commit: str, folder: str) -> dict[str, str]:
        """The files of a folder (or the file) in a commit: path relative to it -> git's digest of its content."""
        listed = self.git("ls-tree", "-r", "-z", commit, "--", folder) or ""
        found = {}
        for line in filter(None, listed.split("\0")):
            entry, path = line.split("\t", 1)
            mode, kind, digest = entry.split()
            if kind == "blob" and mode != "120000":
                found[path.removeprefix(folder).lstrip("/")] = digest
        return found

    def ignores(self, path: str) -> bool:
        """Whether git ignores new files at this path."""
        return self.git("check-ignore", "--quiet", "--no-index", path) is not None

    def find_lock(self, digest: str, first: str | None = None) -> FoundLock | None:
        """The `dvc.lock` whose digest without the stage `register` is `digest`.

        Looked at are the commit `first`, every commit of every branch, tag and DVC experiment that
        changed the lock, and the working folder. DVC writes the lock while the pipeline runs, so the
        commit that holds it commonly is the one after that which was checked out.
        """
        commits = [first] if first else []
        commits += (self.git("log", "--all", "--format=%H", "--", LOCK) or "").split()
        for commit in commits:
            content = self.file(commit, LOCK)
            text = content.decode("utf-8", "replace") if content is not None else ""
            if found := FoundLock.checked(text, digest, commit, f"commit {commit[:12]}"):
                return found
        here = self.root / LOCK
        if not here.is_file():
            return None
        return FoundLock.checked(here.read_text(encoding="utf-8"), digest, None, "the working folder")


def blob_digest(content: bytes, like: str) -> str:
    """Git's digest of a file's content, by the algorithm of the digest `like`."""
    algorithm = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(algorithm, b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
