"""What a run was made from: git commit, dvc.lock, installed packages, platform."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

from textmill.files import sha256_file
from textmill.registry.runs.git import git

PREFIX = "textmill."


def origin_tags(root: Path) -> dict[str, str]:
    """Tags that lead from a run back to code, lock and surroundings; what is unknown is left out.

    The names that begin with `mlflow.` are those that MLflow's UI shows in its own columns.
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


def lock_tags(root: Path) -> dict[str, str]:
    """The digest of `dvc.lock` as it stands now; DVC writes a stage into it after the stage ended."""
    lock = root / "dvc.lock"
    return {f"{PREFIX}dvc_lock_sha256": sha256_file(lock)} if lock.is_file() else {}


def upstream_lock_digest(root: Path, stage: str) -> str | None:
    """SHA-256 of `dvc.lock` without the entry of `stage`, as canonical JSON; None without a lock.

    While a stage runs, DVC has written all stages before it into the lock, but not yet the stage
    itself. So this digest, unlike one of the file, is the same during the stage and ever after.
    """
    lock = root / "dvc.lock"
    return lock_digest(lock.read_text(encoding="utf-8"), stage) if lock.is_file() else None


def lock_digest(text: str, stage: str) -> str:
    """The same of the text of a `dvc.lock`.

    Raises:
        yaml.YAMLError: It is no YAML.
    """
    import json

    import yaml

    stages = (yaml.safe_load(text) or {}).get("stages", {})
    kept = {name: entry for name, entry in stages.items() if name != stage}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def uncommitted_changes(root: Path) -> str:
    """Git's short status of what could change a result and is in no commit.

    These are changed tracked files anywhere and new files in `conf/` and `src/`. `dvc.lock` is left
    out: DVC rewrites it while the pipeline runs, and its digest is recorded beside.
    """
    changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude,top)dvc.lock") or ""
    new = git(root, "ls-files", "--others", "--exclude-standard", "--", "conf", "src") or ""
    return changed + new


def installed_packages() -> str:
    """Every installed distribution as `name==version`, a line each, sorted: a `pip freeze`."""
    names = {f"{found.name}=={found.version}" for found in metadata.distributions()}
    return "\n".join(sorted(names, key=str.lower)) + "\n"
