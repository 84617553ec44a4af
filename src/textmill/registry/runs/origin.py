"""The origin of a run: git commit, dvc.lock, installed packages, platform."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from textmill.config.yaml_limits import require_bounded
from textmill.files import sha256_file
from textmill.registry.runs.git import git

PREFIX = "textmill."
DATA = f"{PREFIX}data."
REGISTERED = f"{PREFIX}registered"
"""Tag of a run of which a version is registered."""
PROCESS = f"{PREFIX}process"
"""Tag with the identity of the process that writes to a run."""
_DIGEST = "_sha256"


def origin_tags(root: Path) -> dict[str, str]:
    """Return tags with commit, lock, packages and platform of a run; unknown values are omitted.

    MLflow's UI shows the tags `mlflow.…` in columns of their own.
    """
    tags = {
        f"{PREFIX}python": platform.python_version(),
        f"{PREFIX}platform": platform.platform(),
        f"{PREFIX}environment_sha256": hashlib.sha256(installed_packages().encode()).hexdigest(),
    }
    commit = git(root, "rev-parse", "HEAD")
    if commit:
        branch = git(root, "rev-parse", "--abbrev-ref", "HEAD") or "HEAD"
        dirty = str(bool(uncommitted_changes(root))).lower()
        tags |= {
            "mlflow.source.git.commit": commit.strip(),
            "mlflow.source.git.branch": branch.strip(),
            "mlflow.source.git.dirty": dirty,
            f"{PREFIX}git_commit": commit.strip(),
            f"{PREFIX}git_dirty": dirty,
        }
    return tags | lock_tags(root)


def user_name() -> str | None:
    """Return the user of the tracking server, or else of the machine; None for a user without a name."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (OSError, KeyError):
        return None


def data_digests(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the digests among a version's tags: name of the data (`corpus`, `train`, ...) -> digest."""
    return {
        key.removeprefix(DATA).removesuffix(_DIGEST): str(value)
        for key, value in sorted(tags.items())
        if key.startswith(DATA) and key.endswith(_DIGEST)
    }


def lock_tags(root: Path) -> dict[str, str]:
    """Return the digest of `dvc.lock` as it is now; DVC adds a stage after the stage has ended."""
    lock = root / "dvc.lock"
    return {f"{PREFIX}dvc_lock_sha256": sha256_file(lock)} if lock.is_file() else {}


def upstream_lock_digest(root: Path, stage: str) -> str | None:
    """Return the SHA-256 of `dvc.lock` without the entry of `stage`, as canonical JSON; None without a lock.

    DVC adds a stage to the lock after the stage has ended. Without that entry the digest is the same
    during the stage and afterwards.
    """
    lock = root / "dvc.lock"
    return lock_digest(lock.read_text(encoding="utf-8"), stage) if lock.is_file() else None


def lock_digest(text: str, stage: str) -> str:
    """Return the digest of the text of a `dvc.lock`; see `upstream_lock_digest`. Raise YAMLError if it is not YAML."""
    import json

    import yaml

    require_bounded(text, "dvc.lock")
    stages = (yaml.safe_load(text) or {}).get("stages", {})
    kept = {name: entry for name, entry in stages.items() if name != stage}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def uncommitted_changes(root: Path) -> str:
    """Return git's short status of uncommitted changes that can affect a result.

    These are changed tracked files and new files in `conf/` and `src/`. `dvc.lock` is excluded: DVC
    rewrites it while the pipeline runs, and its digest is recorded separately.
    """
    changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude,top)dvc.lock") or ""
    new = git(root, "ls-files", "--others", "--exclude-standard", "--", "conf", "src") or ""
    return changed + new


def installed_packages() -> str:
    """Return all installed distributions as sorted lines `name==version`, as `pip freeze` does."""
    names = {f"{package.name}=={package.version}" for package in metadata.distributions()}
    return "\n".join(sorted(names, key=str.lower)) + "\n"
