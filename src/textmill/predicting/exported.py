"""The exported folder: read and write its `textmill.json`, verify its digests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from textmill.config.plugins import require_trusted
from textmill.config.section import Section
from textmill.config.sections.generation import GenerationConfig
from textmill.config.sections.prepare import CleaningConfig
from textmill.config.types import PluginSpec
from textmill.errors import UserError
from textmill.files import folder_digests, read_json, sha256_file, write_json

SPECIFICATION_FILE = "textmill.json"
MANIFEST_FILE = "manifest.json"

# Formats that can run code when they are read: an exported folder must not contain them.
_PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".npy")


class TamperedError(UserError):
    """A model file that differs from the exported or registered one."""


class ExportedModel(Section):
    """The content of `textmill.json`.

    Attributes:
        state: Task state fitted on the training split.
        max_length: Longest input in tokens; longer texts are truncated.
        cleaning: Cleaning options of `prepare`, also applied to served texts.
        outputs: Names of the graphs' outputs, in order.
        graphs: ONNX file by precision (`fp32`, `int8`); empty for models that generate text.
        head: ONNX file of a graph over the other graphs' outputs, such as a classifier of two vectors.
        generation: Generation options; None for models with graphs.
        gguf: GGUF file by type of the weights (`f16`, `q8_0`, ...); the first one serves.
        precision: Graph that serves, as the export decided; None in folders of earlier exports, which serve int8.
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
    gguf: dict[str, str] = {}
    precision: str | None = None

    def resolved(self, precision: str) -> str:
        """Return the precision, with `auto` replaced by that of the graph that serves."""
        return (self.precision or "int8") if precision == "auto" else precision


def write_specification(folder: Path, exported: ExportedModel) -> None:
    """Write `textmill.json`."""
    write_json(folder / SPECIFICATION_FILE, exported.model_dump(mode="json"))


def read_specification(folder: Path) -> ExportedModel:
    """Read `textmill.json`. Nothing that it names is imported.

    Raises:
        UserError: The file is missing or invalid, or names classes of a package that is not trusted.
    """
    path = folder / SPECIFICATION_FILE
    if not path.is_file():
        raise UserError("no exported model here", where=str(folder), fix="Run `dvc repro`, or give another folder")
    try:
        exported = ExportedModel.model_validate(read_json(path))
    except (ValidationError, ValueError, RecursionError) as error:
        raise UserError("not a valid textmill.json", where=str(path), fix="Export the model again") from error
    require_trusted([exported.task, exported.model], str(path))
    return exported


def write_manifest(folder: Path) -> str:
    """Write the SHA-256 digests of all other files to `manifest.json` and return its own digest."""
    digests = folder_digests(folder)
    digests.pop(MANIFEST_FILE, None)
    write_json(folder / MANIFEST_FILE, digests)
    return sha256_file(folder / MANIFEST_FILE)


def verify_registered(folder: Path, manifest_sha256: str | None) -> None:
    """Compare the manifest of a fetched version with the digest in the registry.

    Raises:
        TamperedError: The manifest is missing, differs, or the registry has no digest.
    """
    path = folder / MANIFEST_FILE
    if manifest_sha256 is None:
        fix = "Register it with `dvc repro register`"
        raise TamperedError("the registry has no digest of this version", where=str(folder), fix=fix)
    if not path.is_file():
        raise TamperedError("the manifest is missing", where=str(path), fix="Export the model again")
    if sha256_file(path) != manifest_sha256:
        fix = "Do not use this version; register the model again"
        raise TamperedError("the manifest differs from the registered one", where=str(path), fix=fix)


def find_pickle(folder: Path) -> Path | None:
    """Return the first file below `folder` in a format that can run code when read, or None."""
    return next((path for path in sorted(folder.rglob("*")) if path.name.lower().endswith(_PICKLES)), None)


def verify(folder: Path, fix: str = "Do not use this folder; export the model again, or run `dvc checkout`") -> None:
    """Compare every file with the manifest.

    Args:
        folder: The exported folder.
        fix: What to do about a folder that differs.

    Raises:
        TamperedError: A file is changed, missing, not listed, or a pickle.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise TamperedError("the manifest is missing", where=str(path), fix="Export the model again")
    try:
        expected: dict[str, str] = dict(read_json(path))
    except (ValueError, TypeError, RecursionError) as error:
        raise TamperedError("the manifest is not readable", where=str(path), fix="Export the model again") from error
    actual = folder_digests(folder)
    actual.pop(MANIFEST_FILE)
    for name in sorted(actual.keys() | expected.keys()):
        problems = {
            "a pickle can run any code and is refused": name.lower().endswith(_PICKLES),
            "the file is missing": name not in actual,
            "the manifest does not list this file": name not in expected,
            "the file was changed after the export (digest differs)": actual.get(name) != expected.get(name),
        }
        if problem := next((text for text, is_true in problems.items() if is_true), None):
            raise TamperedError(problem, where=str(folder / name), fix=fix)
