"""Optional parts of a task's contract. A task subclasses those it needs; callers ask by `isinstance`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.sections.generation import GenerationConfig
from textmill.metrics.base import Outputs
from textmill.tasks.base import State, Task
from textmill.tasks.examples.rows import EncodedRows, Examples

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    import torch


class RealignsTargets(ABC):
    """A task whose targets point into a text, so that cleaning the text must move them."""

    @abstractmethod
    def realign_targets(
        self, raw: Mapping[str, Sequence[str | None]], columns: dict[str, list[str | None]]
    ) -> dict[int, tuple[str, str]]:
        """Rewrite the targets for the cleaned texts, in place.

        Args:
            raw: The text columns before cleaning.
            columns: All mapped columns, the texts cleaned.

        Returns:
            Rows with an unusable target: position -> (column, reason).
        """


class LearnsFromTeacher(ABC):  # noqa: B024 - a mark: the loss reads the column
    """A task whose loss also compares with a teacher's logits, the encoded column `teacher_logits` (B, labels)."""


class CutsExamples(ABC):
    """A task whose examples are not the rows of a split but, for example, windows over them."""

    @abstractmethod
    def examples(self, table: pa.Table) -> Examples:
        """Return the examples of a prepared split."""

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Return the token ids of encoded rows by `Task.sequence_columns`, in the order of `examples`."""
        return {"input_ids": columns["input_ids"]}

    def packing(self, table: pa.Table) -> dict[str, Any]:
        """Return counts of a split whose rows are packed, for the data report; none by default."""
        return {}


class AddsColumns(ABC):
    """A task that needs what the pretrained model says of the encoded rows, computed once, by `prepare`."""

    @abstractmethod
    def column_adder(
        self, pretrained: Path, state: State, accelerator: str
    ) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]:
        """Load the model of a folder; return a function from encoded rows to further columns of them.

        `accelerator` is that of `runtime.trainer`.
        """


class ComparesRows(ABC):
    """A task whose loss compares the rows of a batch, such as in-batch negatives, and so is not a mean over rows.

    Its gradient needs the vectors of all rows of a step at once, but not all activations: training computes
    the vectors of every micro-batch first, then the gradients of one micro-batch after the other (gradient
    caching; Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").
    """

    @property
    def compares_rows(self) -> bool:
        """Whether `loss` is `compare` of `embed`; False where an option makes it a mean over rows."""
        return True

    @abstractmethod
    def embed(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute vectors by name, one row an example, of a batch."""

    @abstractmethod
    def compared_targets(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors of a batch that `compare` reads, one row an example."""

    @abstractmethod
    def compare(self, vectors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss of rows from their vectors and targets."""


class CalibratesWeights(ABC):
    """A task that stores a choice made on validation, such as a threshold, in the best weights."""

    @property
    def calibrates(self) -> bool:
        """Whether the task's options ask for the choice."""
        return True

    @abstractmethod
    def calibrate_weights(
        self, weights: dict[str, torch.Tensor], metrics: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Return the weights with the choice of the best validation; `metrics` are those of that validation."""


class ContinuesText(ABC):
    """A task whose network continues a prompt token by token.

    Attributes:
        answers_prompt: Whether the continuation is an answer to the prompt, and not the same text.
    """

    answers_prompt: ClassVar[bool] = False

    @abstractmethod
    def prompts(self, frame: pd.DataFrame, state: State) -> list[str]:
        """Return the prompts for parsed inputs."""


class GeneratesText(ABC):
    """A task whose network generates a new text from its input, such as a translation."""

    @property
    @abstractmethod
    def generation(self) -> GenerationConfig:
        """Options of generation, for the evaluation and the exported model."""

    @abstractmethod
    def generate(
        self, network: torch.nn.Module, input_ids: Sequence[Sequence[int]], tokenizer: Any, state: State
    ) -> Outputs:
        """Return the texts generated for encoded inputs, in their order, as outputs beside those of `loss`."""


class DriftFeatures(ABC):
    """A task whose outputs grow with the length of a text, or of which some tell nothing about drift."""

    @abstractmethod
    def drift_features(self, outputs: Outputs) -> Outputs:
        """Return vectors whose width does not depend on the length of a text."""


def has_several_labels(task: Task) -> bool:
    """Return whether a row may have any number of labels."""
    return task.problem_type == "multi_label_classification"


def generates(task: Task) -> bool:
    """Return whether the network answers token by token."""
    return isinstance(task, ContinuesText | GeneratesText)


def examples_of(task: Task, table: pa.Table) -> Examples:
    """Return the examples of a prepared split: its rows, unless the task cuts them."""
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
    """Return outputs that can be compared between texts of any length; by default unchanged."""
    return task.drift_features(outputs) if isinstance(task, DriftFeatures) else outputs


def natural_inputs(task: Task, table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a prepared split as natural inputs; `example_inputs` where the task continues prompts."""
    if isinstance(task, ContinuesText):
        return task.example_inputs()
    rows: list[dict[str, Any]] = table.select(list(task.text_columns)).to_pylist()
    return rows
