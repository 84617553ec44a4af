"""Check each link of a version's lineage against this repository, DVC's cache and the installed packages."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from textmill.errors import UserError, from_os_error, translate
from textmill.files import read_json, sha256_file
from textmill.predicting.exported import MANIFEST_FILE, TamperedError, find_pickle
from textmill.registry.lineage.dvc_cache import Cache, folder_md5
from textmill.registry.lineage.lineage import Origin
from textmill.registry.lineage.repository import blob_digest
from textmill.registry.runs.environment import package_differences
from textmill.registry.runs.store import tracking_errors
from textmill.registry.versions.version_files import VERSION_MANIFEST, download_model, exported_folder, verify_model
from textmill.registry.versions.version_manifest import MANIFEST as VERSION_FILES

Status = Literal["holds", "broken", "unchecked"]

_MANIFESTS = {"export": ("data/exported", "model"), "teacher": ("data/raw", "teacher")}
_FOLDERS = {"weights": ("data/trained", "model"), "start": ("data/pretrained", "start/model")}
"""Where the content of a digest is: of a manifest, and over a folder; that of a split is in `data/prepared`."""
_MAX_NAMED = 3


@dataclass(frozen=True)
class Link:
    """The result of checking one link, with an explanation."""

    name: str
    status: Status
    detail: str


class BrokenLinkError(Exception):
    """A link does not hold; the message says why."""


class UncheckedLinkError(Exception):
    """A link could not be checked; the message says why."""


def verify_origin(origin: Origin) -> Iterator[Link]:
    """Check the links one by one. An error in a check becomes an unchecked link, not an exception.

    The artifact is downloaded from the store, without local copies.
    """
    with tempfile.TemporaryDirectory() as temporary:
        model = _download(origin, Path(temporary))
        yield _link("artifact", lambda: _artifact(origin, model))
        yield _link("run", lambda: _run(origin))
        yield _link("commit", lambda: _commit(origin))
        yield _link("code", lambda: _code(origin, model))
        yield _link("dvc.lock", lambda: _lock(origin))
        yield _link("inputs", lambda: _inputs(origin))
        yield _link("data", lambda: _data(origin))
        yield _link("environment", lambda: _environment(origin))


def _link(name: str, check: Callable[[], str]) -> Link:
    try:
        return Link(name, "holds", check())
    except BrokenLinkError as error:
        return Link(name, "broken", str(error))
    except UncheckedLinkError as error:
        return Link(name, "unchecked", str(error))
    except Exception as error:  # any library's error means that the check could not be made
        text = translate(error) or f"{type(error).__name__}: {error}"
        return Link(name, "unchecked", " ".join(str(text).split())[:300])


# -- artifact ----------------------------------------------------------------------------------


def _download(origin: Origin, temporary: Path) -> Path | UserError:
    """Download the version's MLflow model from the store; return an error if that fails."""
    try:
        with tracking_errors(origin.store):
            return download_model(origin.version, None if origin.store.startswith("sqlite:") else temporary)
    except (UserError, OSError) as error:
        return error if isinstance(error, UserError) else from_os_error(error)


def _artifact(origin: Origin, model: Path | UserError) -> str:
    folder = _exported(model)
    if pickle := find_pickle(folder.parent.parent):
        raise BrokenLinkError(f"{pickle}: a pickle can run any code and is refused")
    try:
        verify_model(folder.parent.parent, origin.version)
    except TamperedError as error:
        raise BrokenLinkError(str(error)) from error
    files = len(read_json(folder / MANIFEST_FILE))
    if (digest := origin.tag(VERSION_MANIFEST)) is not None:
        files += len(read_json(folder.parent.parent / VERSION_FILES))
        return f"{files} files as registered, manifest {digest[:12]}"
    return (
        f"{files} files as registered, manifest {str(origin.tag('manifest_sha256'))[:12]}; the manifest covers the "
        "exported folder only, as in all versions registered before 26 November 2026"
    )


def _exported(model: Path | UserError) -> Path:
    if isinstance(model, UserError):
        raise BrokenLinkError(str(model))
    folder = exported_folder(model)
    if folder == model:
        raise BrokenLinkError(f"{model / 'artifacts'}: no exported folder with a manifest in the model")
    return folder


# -- run, commit, code -------------------------------------------------------------------------


def _run(origin: Origin) -> str:
    if origin.run is None:
        raise BrokenLinkError(
            f"the run {origin.run_id or 'that made it'} is not in {origin.store}, or was deleted there"
        )
    exported = origin.run_tag("manifest_sha256")
    if exported not in (None, origin.tag("manifest_sha256")):  # None if export ran in another store
        raise BrokenLinkError(f"the run exported {exported}, the version has {origin.tag('manifest_sha256')}")
    trained = origin.run_tag("git_commit")
    at = f", started at commit {trained[:12]}" if trained and trained != origin.commit else ""
    return f"{origin.run.info.run_name} ({origin.run_id[:12]}) is {origin.run.info.status}{at}"


def _commit(origin: Origin) -> str:
    commit = origin.commit
    if commit is None:
        raise UncheckedLinkError("the version was made outside git")
    if not origin.repository.exists:
        raise UncheckedLinkError(f"this folder is not in a git repository; the version was made from {commit[:12]}")
    if not origin.repository.has_commit(commit):
        raise BrokenLinkError(f"{commit[:12]} is not in this repository; try `git fetch`")
    if not origin.dirty:
        return f"{commit[:12]} {origin.repository.subject(commit)}"
    later = origin.source_commit
    if later is None:
        raise UncheckedLinkError(
            f"{commit[:12]} exists, but had uncommitted changes, and no commit contains their dvc.lock"
        )
    return f"{commit[:12]} with changes, committed later as {later[:12]} {origin.repository.subject(later)}"


def _source(origin: Origin) -> str:
    commit = origin.source_commit
    if commit is None or not origin.repository.has_commit(commit):
        raise UncheckedLinkError("needs the commit")
    return commit


def _code(origin: Origin, model: Path | UserError) -> str:
    """Compare the code stored with the model with the files of the commit."""
    folder = _exported(model).parent.parent / "code"
    commit = _source(origin)
    packages = sorted(path for path in folder.iterdir() if path.name != "__pycache__") if folder.is_dir() else []
    if not packages:
        raise BrokenLinkError(f"{folder}: no code is stored with the model")
    compared = 0
    for package in packages:
        name = package.stem if package.suffix == ".zip" else package.name
        places = [place for place in (f"src/{name}", name) if origin.repository.blobs(commit, place)]
        if not places:
            raise UncheckedLinkError(f"the package {name} is not in this repository")
        expected = origin.repository.blobs(commit, places[0])
        files = _files(package)
        for path in sorted(files.keys() | expected.keys()):
            where = str(package / path) if path else str(package)
            if path not in files:
                raise BrokenLinkError(f"{where} is missing; the commit has it")
            if path not in expected:
                raise BrokenLinkError(f"{where} is not in the commit {commit[:12]}")
            if blob_digest(files[path], expected[path]) != expected[path]:
                raise BrokenLinkError(f"{where} differs from the commit {commit[:12]}")
        compared += len(files)
    return f"{compared} code files of the model are those of {commit[:12]}"


def _files(package: Path) -> dict[str, bytes]:
    """Return the content of a package's files by relative path; versions before 27 November 2026 have folders."""
    if package.suffix == ".zip":
        with zipfile.ZipFile(package) as archive:
            return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    if package.is_file():
        return {"": package.read_bytes()}
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in files}


# -- dvc.lock, inputs, data --------------------------------------------------------------------


def _lock(origin: Origin) -> str:
    digest = origin.tag("dvc_lock_upstream_sha256")
    if digest is None:
        raise UncheckedLinkError("the version was made without a dvc.lock")
    if origin.lock is None:
        raise BrokenLinkError(f"no dvc.lock with the digest {digest[:12]} in any commit, the working folder or the run")
    return f"{digest[:12]}, in {origin.lock.where}"


def _inputs(origin: Origin) -> str:
    """Compare the committed inputs of the stages (configuration, code) with the digests in dvc.lock.

    Files ignored by git (a user's own data) are not part of a commit; outputs made from them are checked as data.
    """
    if origin.lock is None:
        raise UncheckedLinkError("needs dvc.lock")
    commit = _source(origin)
    outputs = origin.lock.outputs
    entries = [entry for stage in origin.lock.stages.values() for entry in stage.get("deps", [])]
    deps = {entry["path"]: str(entry.get("md5")) for entry in entries}
    compared = 0
    for path, expected in sorted(deps.items()):
        if path in outputs or any(path.startswith(f"{out}/") for out in outputs):
            continue
        if origin.repository.ignores(f"{path}/file") or origin.repository.ignores(path):
            continue
        names = origin.repository.blobs(commit, path)
        content = {name: origin.repository.file(commit, f"{path}/{name}".rstrip("/")) or b"" for name in names}
        digests = {name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in content.items()}
        if (digests.get("") or folder_md5(digests.items())) != expected:
            raise BrokenLinkError(f"{path} of {commit[:12]} differs from its digest in dvc.lock")
        compared += 1
    return f"{compared} files and folders of {commit[:12]} are as in dvc.lock"


def _data(origin: Origin) -> str:
    """Compare the cache with every output in dvc.lock, and with the version's digests."""
    lock = origin.lock
    if lock is None:
        raise UncheckedLinkError("needs dvc.lock")
    cache = Cache.of(origin.repository.root)
    outputs = {path: out for path, out in lock.outputs.items() if path != "data/registered"}
    missing = []
    for out in outputs.values():
        problem = cache.problem(out)
        if problem is None:
            continue
        text, absent = problem
        if not absent:
            raise BrokenLinkError(text)
        missing.append(text)
    if missing and not cache.has_remote:
        raise BrokenLinkError(f"{_few(missing)}, and there is no DVC remote to pull it from")
    digests = {**origin.data, "weights": origin.tag("weights_sha256"), "export": origin.tag("manifest_sha256")}
    for name, expected in digests.items():
        digest = _cached_digest(cache, outputs, name)
        if digest is not None and expected and digest != expected:
            raise BrokenLinkError(
                f"the {name} in dvc.lock has the digest {digest[:12]}, the version has {expected[:12]}"
            )
    if missing:
        raise UncheckedLinkError(f"{_few(missing)}; run `dvc pull`")
    size = sum(int(out.get("size", 0)) for out in outputs.values())
    return f"{len(outputs)} outputs ({size / 1e6:.1f} MB) are in the DVC cache and have the version's digests"


def _cached_digest(cache: Cache, outputs: dict[str, dict[str, str]], name: str) -> str | None:
    """Return the same digest of the content of the cache; None if it is not there."""
    if name == "corpus":
        provenance = cache.file_in(outputs["data/raw"], "provenance.json") if "data/raw" in outputs else None
        return read_json(provenance).get("sha256") if provenance else None
    if name in _MANIFESTS:
        path, inside = _MANIFESTS[name]
        manifest = cache.file_in(outputs[path], f"{inside}/{MANIFEST_FILE}") if path in outputs else None
        return sha256_file(manifest) if manifest else None
    path, inside = _FOLDERS.get(name, ("data/prepared", name))
    return cache.sha256_of_folder(outputs[path], inside) if path in outputs else None


def _few(texts: list[str]) -> str:
    more = f" (and {len(texts) - _MAX_NAMED} more)" if len(texts) > _MAX_NAMED else ""
    return "; ".join(texts[:_MAX_NAMED]) + more


# -- environment -------------------------------------------------------------------------------


def _environment(origin: Origin) -> str:
    listing = origin.artifact("environment/requirements.txt")
    if listing is None:
        raise UncheckedLinkError("the run has no list of installed packages")
    if hashlib.sha256(listing.encode()).hexdigest() != origin.run_tag("environment_sha256"):
        raise BrokenLinkError("the run's list of installed packages differs from its recorded digest")
    needed, others = package_differences(listing)
    if needed:
        raise BrokenLinkError(f"installed packages differ: {_few(needed)}")
    return "the packages that Textmill needs are unchanged" + (f"; {others} other packages differ" if others else "")
