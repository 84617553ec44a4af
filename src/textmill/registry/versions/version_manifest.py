"""The manifest of a version: the digest of every file that loading it can read or run.

`served_model.py` imports this module before anything else of the stored code, so it imports only the standard
library. The exported folder has a manifest of its own, and its digest is in this one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "textmill_manifest.json"
REGISTRY_NOTE = "registered_model_meta"
"""Name and version, which MLflow writes into a model's folder whenever it fetches it by `models:/`; nothing runs it."""

_EXPORTED_MANIFEST = "manifest.json"
_BYTECODE = "__pycache__"


def seal(folder: Path) -> str:
    """Write the manifest of an MLflow model's folder and return the SHA-256 of the manifest.

    A file takes the place of each `__pycache__`: Python then neither stores bytecode in the folder nor runs
    bytecode from it, so that a version stays as it was registered when it is loaded where it is stored.
    """
    for place in {folder, *(path.parent for path in folder.rglob("*.py"))}:
        (place / _BYTECODE).write_bytes(b"")
    own = {path.parent for path in folder.glob(f"artifacts/*/{_EXPORTED_MANIFEST}")}
    text = json.dumps(_digests(folder, own), indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def find_problem(folder: Path, manifest_sha256: str | None = None) -> tuple[str, str] | None:
    """Return the first file that differs from the manifest, with the difference; None if all are as registered.

    Args:
        folder: The MLflow model's folder.
        manifest_sha256: Digest of the manifest in the registry; None compares only the files with the manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return MANIFEST, "the manifest of the version is missing"
    content = path.read_bytes()
    if manifest_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        return MANIFEST, "the manifest of the version differs from the registered one"
    try:
        expected = dict(json.loads(content))
    except ValueError:
        return MANIFEST, "the manifest of the version is not readable"
    listed = (Path(name) for name in expected if name.count("/") == 2)  # artifacts/NAME/manifest.json
    actual = _digests(folder, {folder / path.parent for path in listed if path.name == _EXPORTED_MANIFEST})
    for name in sorted(actual.keys() | expected.keys()):
        if name not in actual:
            return name, "the file is missing"
        if name not in expected:
            return name, "the manifest of the version does not list this file"
        if actual[name] != expected[name]:
            return name, "the file was changed after the registration (digest differs)"
    for other in sorted(folder.rglob("*")):
        if other.is_symlink():
            return other.relative_to(folder).as_posix(), "it is a link, whose target may change at any time"
        if other.is_dir() and not any(other.iterdir()):
            return other.relative_to(folder).as_posix(), "the manifest of the version does not list this folder"
    return None


def _digests(folder: Path, own: set[Path]) -> dict[str, str]:
    """Return the SHA-256 of the files by relative path.

    The folders `own` have a manifest of their own: of their files only that one is included.
    """
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        if path.name != _EXPORTED_MANIFEST and any(parent in own for parent in path.parents):
            continue
        if path.parent == folder and path.name in (MANIFEST, REGISTRY_NOTE):
            continue
        digests[path.relative_to(folder).as_posix()] = (
            _sha256(path) if path.is_file() else ""
        )  # a pipe, say, never ends
    return digests


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
