"""Optional parts of a task's contract: a task that needs one subclasses it, and callers ask by `isinstance`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textmill.config.sections.generation import GenerationConfig
from textmill.metrics.base import Outputs
from textmill.tasks.base import State, Task
from textmill.tasks.examples.rows import EncodedRows, Examples

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import torch


class RealignsTargets(ABC):
    """A task whose targets point into a text, and must follow when the text is cleaned."""

    @abstractmethod
    def realign_targets(
        self, given: Mapping[str, Sequence[str | None]], columns: dict[str, list[str | None]]
    ) -> dict[int, tuple[str, str]]:
        """Rewrite the targets for the cleaned texts.

        Args:
            given: The text columns before cleaning.
            columns: All mapped columns, the texts cleaned; changed in place.

        Returns:
            Rows whose target cannot be used: position -> (column, reason).
        """


class CutsExamples(ABC):
    """A task that shows the network other examples than a split's rows: windows over them, say."""

    @abstractmethod
    def examples(self, table: pa.Table) -> Examples:
        """Return the examples of a prepared split."""

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Return the token ids of encoded rows by `Task.sequence_columns`, in the order of `examples`."""
        return {"input_ids": columns["input_ids"]}


class CalibratesWeights(ABC):
    """A task that writes what validation chose (a threshold, say) into the best weights."""

    @abstractmethod
    def calibrate_weights(
        self, weights: dict[str, torch.Tensor], metrics: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Return the weights with the choice of the validation whose `metrics` were best."""


class ContinuesText(ABC):
    """A task whose network continues a prompt token by token, as a language model does."""

    @abstractmethod
    def prompts(self, frame: pd.DataFrame, state: State) -> list[str]:
        """Return the prompts for parsed inputs."""


class GeneratesText(ABC):
    """A task whose network generates a text of its own about its input: a translation, say."""

    @property
    @abstractmethod
    def generation(self) -> GenerationConfig:
        """How the evaluation and the exported model generate."""

    @abstractmethod
    def generate(
        self, network: torch.nn.Module, input_ids: Sequence[Sequence[int]], tokenizer: Any, state: State
    ) -> Outputs:
        """Return the generated texts for encoded inputs, in their order: outputs beside those of `loss`."""


class DriftFeatures(ABC):
    """A task whose outputs grow with the length of a text, and need another form to be compared."""

    @abstractmethod
    def drift_features(self, outputs: Outputs) -> Outputs:
        """Return the outputs as vectors of one width for texts of any length."""


def generates(task: Task) -> bool:
    """Tell whether the network answers token by token."""
    return isinstance(task, ContinuesText | GeneratesText)


def examples_of(task: Task, table: pa.Table) -> Examples:
    """Return what the network is shown of a prepared split: its rows, unless the task cuts them otherwise."""
    if isinstance(task, CutsExamples):
        return task.examples(table)
    raw = {"id", "words", "source", *task.text_columns, *task.target_columns, *task.optional_columns}
    columns = [name for name in table.column_names if name not in raw]
    return EncodedRows(table, columns, list(task.sequence_columns.values()))


def sequences_of(task: Task, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Sequence[int]]]:
    """Return the token ids of encoded rows by `Task.sequence_columns`, in the order of `examples_of`."""
    if isinstance(task, CutsExamples):
        return task.sequences(columns)
    return {name: columns[name] for name in task.sequence_columns.values()}


def drift_features_of(task: Task, outputs: Outputs) -> Outputs:
    """Return outputs that compare between texts of any length; as they are by default."""
    return task.drift_features(outputs) if isinstance(task, DriftFeatures) else outputs


def natural_inputs(task: Task, table: pa.Table) -> list[dict[str, Any]]:
    """Return what a user would ask of the rows of a prepared split; examples where a prompt is continued."""
    if isinstance(task, ContinuesText):
        return task.example_inputs()
    rows: list[dict[str, Any]] = table.select(list(task.text_columns)).to_pylist()
    return rows
