"""From an exported folder to a model that is checked, warm and ready to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from textmill.errors import UserError
from textmill.files import sha256_file
from textmill.predicting.exported import MANIFEST_FILE, read_specification

if TYPE_CHECKING:
    from textmill.predicting.loading import Precision
    from textmill.tasks.base import Task

_WARM_UP_ROWS = 16
_LENGTHS_MAY_BE_OFF_BY = 4


@dataclass(frozen=True)
class Identity:
    """Which model this is.

    Attributes:
        name: Of the registered model; the folder's path for a plain folder.
        version: In the registry; empty for a plain folder.
        manifest_sha256: Digest of `manifest.json`, which holds those of all other files.
        commit: The git commit that made it, where known.
    """

    name: str
    version: str
    manifest_sha256: str
    commit: str | None = None

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name


@dataclass(frozen=True)
class Fetched:
    """An exported folder on this machine, and which model it should be."""

    folder: Path
    identity: Identity


class ModelSource(Protocol):
    """Where the model to serve comes from."""

    follows: bool
    """Whether another version may become the one to serve."""

    def latest(self) -> str:
        """The version that should be served now.

        Raises:
            UserError: There is none, or the registry does not answer.
        """

    def fetch(self, version: str) -> Fetched:
        """Bring that version to this machine, its manifest held against the registered digest.

        Raises:
            UserError: It is gone, its manifest is another, or the registry does not answer.
        """


class FolderSource:
    """A folder outside any registry. It is loaded once."""

    follows = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> str:
        """A folder has no versions."""
        return ""

    def fetch(self, version: str) -> Fetched:
        """The folder as it stands.

        Raises:
            UserError: There is no exported model in it.
        """
        manifest = self.folder / MANIFEST_FILE
        if not manifest.is_file():
            fix = "Run `dvc repro`, or name another folder"
            raise UserError("no exported model here", where=str(self.folder), fix=fix)
        return Fetched(self.folder, Identity(str(self.folder), version, sha256_file(manifest)))


class Answerer(Protocol):
    """What a server needs of a predictor; `Predictor` is one."""

    @property
    def task(self) -> Task:
        """Checks inputs and has examples of them."""

    def lengths(self, values: Sequence[Any]) -> list[int]:
        """About how many tokens each input has, at least one, quickly: by this, inputs share a batch."""

    def predict(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        """One record of plain JSON values an input, in their order; called from several threads.

        Raises:
            UserError: An input is empty or of a wrong kind.
        """


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that answers.

    Attributes:
        identity: Which one.
        predictor: Answers; where it also is a `textmill.serving.generation.StreamingGenerator`, it generates.
        examples: Natural inputs and the answers that this model gave to them.
    """

    identity: Identity
    predictor: Answerer
    examples: list[tuple[Any, dict[str, Any]]]


def load_model(fetched: Fetched, precision: Precision, batch_tokens: int) -> LoadedModel:
    """Load a folder after holding its files against its manifest, and let it answer once.

    Each batch of a graph is computed in the thread that asks for it: several batches at once keep all
    cores busy without the waiting for one another that threads within a small batch cost.

    Raises:
        UserError: A file is changed, missing, unknown or a pickle.
    """
    from textmill.predicting.loading import load_predictor

    writes = read_specification(fetched.folder).generation is not None
    predictor = load_predictor(fetched.folder, precision, threads=None if writes else 1)
    predictor.tokens_per_batch = _LENGTHS_MAY_BE_OFF_BY * batch_tokens
    inputs = predictor.task.example_inputs()
    answers = predictor.predict(inputs)
    if not writes:  # which has taken long enough once
        predictor.predict((inputs * _WARM_UP_ROWS)[:_WARM_UP_ROWS])
    return LoadedModel(fetched.identity, predictor, list(zip(inputs, answers, strict=True)))
