"""The exported folder: what its `textmill.json` says, and that its files are the ones written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from textmill.config.section import Section
from textmill.config.sections.generation import GenerationConfig
from textmill.config.sections.prepare import CleaningConfig
from textmill.config.types import PluginSpec
from textmill.errors import UserError
from textmill.files import folder_digests, read_json, sha256_file, write_json

SPECIFICATION_FILE = "textmill.json"
MANIFEST_FILE = "manifest.json"

# Formats that run code when they are read. None belongs into an exported folder.
_PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".npy")


class TamperedError(UserError):
    """A file of a model is not the one that was exported or registered; it is named."""


class ExportedModel(Section):
    """What a predictor must know beside the graphs.

    Attributes:
        task: The task plugin and its options.
        model: The model plugin and its options.
        state: What the task learned from the training split.
        max_length: Tokens of a text that the model sees.
        cleaning: As in `prepare`, so that served texts are cleaned like training ones.
        outputs: Names of the graphs' outputs, in order.
        graphs: File of the ONNX graph by precision (`fp32`, `int8`); none where answers are generated.
        head: File of an ONNX graph over outputs of the other ones, such as a classifier of two vectors.
        generation: How answers are generated; None where a graph gives them.
    """

    task: PluginSpec
    model: PluginSpec
    state: dict[str, Any]
    max_length: int
    cleaning: CleaningConfig
    outputs: list[str]
    graphs: dict[str, str]
    head: str | None = None
    generation: GenerationConfig | None = None


def write_specification(folder: Path, exported: ExportedModel) -> None:
    """Write `textmill.json`."""
    write_json(folder / SPECIFICATION_FILE, exported.model_dump(mode="json"))


def read_specification(folder: Path) -> ExportedModel:
    """Read `textmill.json`.

    Raises:
        UserError: It is missing or of another form.
    """
    path = folder / SPECIFICATION_FILE
    if not path.is_file():
        raise UserError("no exported model here", where=str(folder), fix="Run `dvc repro`, or name another folder")
    try:
        return ExportedModel.model_validate(read_json(path))
    except (ValidationError, ValueError) as error:
        raise UserError(
            "not a description of an exported model", where=str(path), fix="Export the model again"
        ) from error


def write_manifest(folder: Path) -> str:
    """Write the SHA-256 digests of all other files to `manifest.json`; its own digest is returned."""
    digests = folder_digests(folder)
    digests.pop(MANIFEST_FILE, None)
    write_json(folder / MANIFEST_FILE, digests)
    return folder_digests(folder)[MANIFEST_FILE]


def verify_registered(folder: Path, manifest_sha256: str | None) -> None:
    """Hold the manifest of a fetched version against the digest that the registry has of it.

    Raises:
        TamperedError: There is no manifest, it is another one, or the registry has no digest.
    """
    path = folder / MANIFEST_FILE
    if manifest_sha256 is None:
        fix = "Register it with `dvc repro register`"
        raise TamperedError("the registry has no digest of it", where=str(folder), fix=fix)
    if not path.is_file():
        raise TamperedError("no manifest of digests", where=str(folder), fix="Export the model again")
    if sha256_file(path) != manifest_sha256:
        fix = "Do not use this version; register the model again"
        raise TamperedError(
            "the manifest is not the one that was registered (digest differs)", where=str(path), fix=fix
        )


def find_pickle(folder: Path) -> Path | None:
    """A file below `folder` in a format that runs code when it is read, if there is one."""
    return next((path for path in sorted(folder.rglob("*")) if path.name.lower().endswith(_PICKLES)), None)


def verify(folder: Path) -> None:
    """Hold every file against the manifest.

    Raises:
        TamperedError: A file is changed, missing, not listed, or a pickle; it is named.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise TamperedError("no manifest of digests", where=str(folder), fix="Export the model again")
    expected: dict[str, str] = read_json(path)
    found = folder_digests(folder)
    found.pop(MANIFEST_FILE)
    fix = "Do not use this folder; export the model again, or run `dvc checkout`"
    for name in sorted(found.keys() | expected.keys()):
        where = str(folder / name)
        if name.lower().endswith(_PICKLES):
            raise TamperedError("a pickle can run any code and is refused", where=where, fix=fix)
        if name not in found:
            raise TamperedError("the file is missing", where=where, fix=fix)
        if name not in expected:
            raise TamperedError("the manifest does not know this file", where=where, fix=fix)
        if found[name] != expected[name]:
            raise TamperedError("the file was changed after the export (digest differs)", where=where, fix=fix)
