"""Load an exported folder for serving: verify it, warm it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from textmill.errors import UserError
from textmill.files import sha256_file
from textmill.predicting.exported import MANIFEST_FILE, read_specification

if TYPE_CHECKING:
    from textmill.predicting.loading import Engine, Precision
    from textmill.tasks.base import Task

_WARM_UP_ROWS = 16
_LENGTH_TOLERANCE = 4  # factor by which estimated lengths may be too small


@dataclass(frozen=True)
class Identity:
    """The identity of a model.

    Attributes:
        name: Name of the registered model, or the path of a plain folder.
        version: Version in the registry; empty for a plain folder.
        manifest_sha256: Digest of `manifest.json`, which contains the digests of all other files.
        commit: The git commit it was built from, if known.
        alias: The alias by which it was found, if any; not a part of the identity.
    """

    name: str
    version: str
    manifest_sha256: str
    commit: str | None = None
    alias: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name


@dataclass(frozen=True)
class FetchedModel:
    """A local exported folder and the identity it should have."""

    folder: Path
    identity: Identity


class ModelSource(Protocol):
    """A source of the model to serve."""

    follows: bool
    """Whether the version to serve can change."""

    def latest(self) -> str:
        """Return the version to serve now.

        Raises:
            UserError: There is none, or the registry does not answer.
        """

    def fetch(self, version: str) -> FetchedModel:
        """Download the version and check its manifest against the registered digest.

        Raises:
            UserError: It no longer exists, its manifest differs, or the registry does not answer.
        """


class FolderSource:
    """A folder outside the registry. It is loaded once."""

    follows = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> str:
        """Return the empty string: a folder has no versions."""
        return ""

    def fetch(self, version: str) -> FetchedModel:
        """Return the folder; raise UserError if it contains no exported model."""
        manifest = self.folder / MANIFEST_FILE
        if not manifest.is_file():
            fix = "Run `dvc repro`, or name another folder"
            raise UserError("no exported model here", where=str(self.folder), fix=fix)
        return FetchedModel(self.folder, Identity(str(self.folder), version, sha256_file(manifest)))


class ServedPredictor(Protocol):
    """The part of a predictor that the server uses."""

    @property
    def task(self) -> Task:
        """The task, which checks inputs and has examples."""

    def lengths(self, values: Sequence[Any]) -> list[int]:
        """Return an estimate of the tokens of each input, at least 1; it must be fast, it decides about batches."""

    def predict(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        """Return one record of JSON values for each input, in order; called from several threads.

        Raises:
            UserError: An input is empty or invalid.
        """


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready to predict.

    Attributes:
        predictor: The predictor; a `textmill.serving.streaming.StreamingGenerator` can also generate.
        examples: Natural inputs and this model's answers.
        labels: Names of the labels that it knows; empty for a task without labels.
    """

    identity: Identity
    predictor: ServedPredictor
    examples: list[tuple[Any, dict[str, Any]]]
    labels: Sequence[str] = ()


def load_model(
    fetched: FetchedModel,
    precision: Precision,
    batch_tokens: int,
    engine: Engine = "pytorch",
    threads: int | None = None,
) -> LoadedModel:
    """Load a folder, check its files against its manifest, and predict once.

    A graph computes each batch in the calling thread. Several concurrent batches keep all cores busy, without
    the synchronisation between threads that a small batch would need. `threads` are those of a model that generates.

    Raises:
        UserError: A file was changed, is missing, unexpected or a pickle.
    """
    from textmill.predicting.loading import load_predictor

    exported = read_specification(fetched.folder)
    generates = exported.generation is not None
    predictor = load_predictor(fetched.folder, precision, threads=threads if generates else 1, engine=engine)
    predictor.tokens_per_batch = _LENGTH_TOLERANCE * batch_tokens
    inputs = predictor.task.example_inputs()
    answers = predictor.predict(inputs)
    if not generates:  # one generation is slow and warm-up enough
        predictor.predict((inputs * _WARM_UP_ROWS)[:_WARM_UP_ROWS])
    examples = list(zip(inputs, answers, strict=True))
    return LoadedModel(fetched.identity, predictor, examples, exported.state.get("labels", ()))
