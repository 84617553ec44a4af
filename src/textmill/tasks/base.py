"""The contract of a task: what it learns and what it serves, from the first row to the answer.

A task is a plugin (see `textmill.config.plugins`): one file subclasses `Task`, and the stages call its methods.
Its `Evaluator` (`textmill.evaluation.evaluator`) measures and reports, so that a new report retrains nothing.
`textmill.tasks.abilities` has what few tasks need. A task imports torch and pandera inside the methods that use them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.plugins import Plugin
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.text.inputs import Input, read_inputs, texts_model
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from textmill.models.base import Model

State = dict[str, Any]
"""What a task learned from the training split, such as label names, as plain JSON."""


@dataclass(frozen=True)
class StepOutput:
    """The result of `Task.loss` for a batch.

    Attributes:
        loss: The training loss, a scalar: the mean over the batch's targets.
        outputs: Tensors by name, one row an example.
        logged: Scalars by name that each training step logs, such as terms of the loss.
    """

    loss: torch.Tensor
    outputs: Mapping[str, torch.Tensor]
    logged: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Task(Plugin):
    """One application of language models.

    Attributes:
        name: Name of the task in the field, with underscores.
        evaluator: Dotted path of the task's `Evaluator`. A string, so that training does not depend on it.
        text_columns: Columns of text, which `prepare` cleans, deduplicates and measures.
        target_columns: Columns of the target; absent at prediction.
        text_target_columns: Target columns of text, which `prepare` cleans and a trained tokenizer reads.
        optional_columns: Columns that `check` and `encode` get where the data has them.
        sequence_columns: Encoded columns of token ids that the network reads separately, by the suffix
            of the names of its outputs for them.
        stratify_column: Column whose shares a seeded split keeps, or None.
        needs_different_targets: Whether a split whose targets are all equal cannot be measured.
        main_metric: Name of the metric that decides parity and promotion.
        monitor: Lightning's name of the validation metric that picks the best checkpoint.
        monitor_mode: `max` or `min`.
        problem_type: transformers' name of the problem of a head over labels, for the exported `config.json`.
    """

    name: ClassVar[str]
    evaluator: ClassVar[str]
    text_columns: tuple[str, ...]
    target_columns: tuple[str, ...]
    text_target_columns: tuple[str, ...] = ()
    optional_columns: tuple[str, ...] = ()
    sequence_columns: ClassVar[Mapping[str, str]] = {"": "input_ids"}
    stratify_column: str | None = None
    needs_different_targets: ClassVar[bool] = False
    main_metric: str
    monitor: str
    monitor_mode: str = "max"
    problem_type: ClassVar[str | None] = None

    # -- prepare ----------------------------------------------------------------------------

    @classmethod
    def prepared_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the task's options that decide what `prepare` makes; by default all.

        A change of another one, such as the weight of a term of the loss, then prepares nothing again.
        """
        return dict(options)

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Learn the state from the training split; by default an empty one.

        Raises:
            UserError: The split has no rows, or cannot be trained on (it has one class only, say).
        """
        if not any(len(frame) for frame in frames):
            fix = "Add rows to the source; rejects.csv lists the unusable ones"
            raise UserError("the training split has no rows", where="prepare.read", fix=fix)
        return {}

    def bind_tokenizer(self, state: State, tokenizer: Any, folder: Path) -> State:
        """Return the state with what the task needs of the tokenizer: its size, its chat template.

        Args:
            state: Result of `fit`.
            tokenizer: A `tokenizers.Tokenizer` without padding or truncation.
            folder: Folder of the tokenizer's files.

        Raises:
            UserError: The tokenizer does not fit the task.
        """
        return state

    @abstractmethod
    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return the rows with a missing or unusable value. `state` is None before `fit`."""

    @abstractmethod
    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return columns of model inputs for `frame`: at least `input_ids` and `length` (tokens).

        Where the frame has the target columns, the encoded target comes too (`label_id`, say).
        `tokenizer` is a `tokenizers.Tokenizer` without padding or truncation.
        """

    def check_encoded(self, columns: Mapping[str, Sequence[Any]]) -> list[RejectedRow]:
        """Return the rows that `encode` left without anything to learn; `prepare` rejects them by line."""
        return []

    # -- train ------------------------------------------------------------------------------

    @abstractmethod
    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the network with the task's head. `pretrained` is a folder of weights, or None."""

    @abstractmethod
    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return encoded columns of a batch as padded tensors, `input_ids` and `attention_mask` (B, T) among them."""

    @abstractmethod
    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the loss of a batch and the network's outputs for its examples.

        The loss is the mean over the `target_count` targets of the batch, so that training can add up the
        gradients of a step's micro-batches. A task whose loss compares rows is a `ComparesRows`.
        """

    def target_count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the number of targets over which `loss` averages: by default the rows of a collated batch."""
        return len(batch["input_ids"])

    @abstractmethod
    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return the metrics of a validation pass, among them `monitor` without its `validation/` prefix.

        Args:
            outputs: The network's outputs, one row an example of the validation split.
            rows: Encoded columns of the split.
            state: Result of `bind_tokenizer`.
        """

    # -- serve ------------------------------------------------------------------------------

    @abstractmethod
    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a few natural inputs, as users would give them."""

    @property
    def input_model(self) -> type[Input]:
        """The pydantic model of one natural input, by default a text for each of `text_columns`."""
        return texts_model(*self.text_columns)

    def parse_inputs(self, values: Sequence[Any]) -> pd.DataFrame:
        """Return natural inputs (a string, a record, a row) as a frame with the task's text columns.

        Raises:
            UserError: There is no input, or one of them is empty or of a wrong kind.
        """
        import pandas as pd

        inputs = read_inputs(values, self.input_model)
        return pd.DataFrame({name: [getattr(one, name) for one in inputs] for name in self.text_columns})

    @abstractmethod
    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return natural answers: one record of plain JSON values a row.

        Args:
            outputs: The network's outputs for the rows.
            rows: Cleaned texts and encoded columns.
            raw: Texts before cleaning, by column.
            state: Result of `bind_tokenizer`.
        """
