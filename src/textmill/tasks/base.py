"""What a task must answer, from the first row to the served prediction.

A task is a plugin (see `textmill.config.plugins`): everything that differs between classifying,
translating or answering questions stands in one file that subclasses `Task`. The stages call these
methods and know no task's name. This module imports nothing heavy; a task imports torch, pandera,
torchmetrics and the like inside the method that needs them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.plugins import Plugin
from textmill.metrics.base import Findings, Metric, Outputs, Section
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    import torch

    from textmill.config.sections.generation import GenerationConfig
    from textmill.models.base import Model
    from textmill.tasks.examples.rows import Examples

State = dict[str, Any]
"""What a task learned from the training split (its label names, say), as plain JSON."""


class Task(Plugin):
    """One application of language models.

    Attributes:
        name: In the field's words, with underscores.
        text_columns: Columns of text: cleaned, deduplicated and measured in `prepare`.
        target_columns: Columns that hold the answer; absent at prediction.
        text_target_columns: Those of them that are text too: cleaned like it, and read by a
            tokenizer that is trained.
        optional_columns: Columns that `check` and `encode` get where the data has them.
        stratify_column: Column whose balance a seeded split keeps, or None.
        main_metric: Name of the metric that decides: checkpoints, parity, promotion.
        monitor: Lightning's name of the validation figure that picks the best checkpoint.
        monitor_mode: `max` or `min`.
        generates: Whether an answer is text that the network writes token by token.
        sequence_columns: The encoded columns of token ids that the network reads one apart from the
            other, by what is put behind the names of its outputs for them.
        continues: Whether that text goes on from the input, as a language model's does; if not, the
            answer stands for itself (see `written`).
        generation: How answers are written, where the task decides it; None leaves it to the
            `export` section.
    """

    name: ClassVar[str]
    text_columns: tuple[str, ...]
    target_columns: tuple[str, ...]
    text_target_columns: tuple[str, ...] = ()
    optional_columns: tuple[str, ...] = ()
    stratify_column: str | None
    main_metric: str
    monitor: str
    monitor_mode: str = "max"
    generates: ClassVar[bool] = False
    sequence_columns: ClassVar[Mapping[str, str]] = {"": "input_ids"}
    continues: ClassVar[bool] = False
    generation: GenerationConfig | None = None

    # -- prepare ----------------------------------------------------------------------------

    @abstractmethod
    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Learn from the training split what the model's head needs.

        Raises:
            UserError: The split cannot be trained on (one class only, say).
        """

    def follow_cleaning(
        self,
        given: Mapping[str, Sequence[str | None]],  # noqa: ARG002 - few tasks ask for it
        columns: dict[str, list[str | None]],  # noqa: ARG002
    ) -> dict[int, tuple[str, str]]:
        """Bring targets that point into a text along after its cleaning; nothing by default.

        Args:
            given: The text columns as they were.
            columns: All mapped columns, the text columns cleaned; changed in place.

        Returns:
            Rows whose target is no use: position -> (column, reason).
        """
        return {}

    @abstractmethod
    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Rows with a missing or impossible value. `state` is None before `fit`."""

    def learn_tokens(self, state: State, tokenizer: Any) -> State:  # noqa: ARG002 - not every task asks it
        """The state with what must be known of the tokenizer (its size, say); as it is by default.

        Raises:
            UserError: The tokenizer does not fit the task.
        """
        return state

    def learn_files(self, state: State, tokenizer: Path) -> State:  # noqa: ARG002 - not every task asks it
        """The state with what must be known of the tokenizer's folder (its chat template, say).

        Raises:
            UserError: Something is not there.
        """
        return state

    @abstractmethod
    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Columns of model inputs for `frame`: `input_ids` and `length` (tokens) at least.

        `tokenizer` is a `tokenizers.Tokenizer` without padding or truncation set. When the frame
        has the target columns, the encoded target comes too (`label_id`, say).
        """

    # -- train ------------------------------------------------------------------------------

    def examples(self, table: pa.Table) -> Examples:
        """What the network is shown of a split's rows: each as it is, unless the task cuts them otherwise."""
        from textmill.tasks.examples.rows import EncodedRows

        raw = {"id", "words", "source", *self.text_columns, *self.target_columns, *self.optional_columns}
        columns = [name for name in table.column_names if name not in raw]
        return EncodedRows(table, columns, list(self.sequence_columns.values()))

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Sequence[int]]]:
        """The token ids of encoded rows, by `sequence_columns`; each in the order of `examples`."""
        return {name: columns[name] for name in self.sequence_columns.values()}

    @abstractmethod
    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """The network with the task's head. `pretrained` is a folder of weights, or None."""

    @abstractmethod
    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Pad encoded columns of a batch to tensors, `input_ids` and `attention_mask` (B, T) among them."""

    @abstractmethod
    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The training loss as `loss` beside the network's outputs by name.

        What has a first axis is an output, one row an example; other scalars than `loss` are logged
        at each training step.
        """

    @abstractmethod
    def validation_figures(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Figures of a validation pass, `monitor` without its `validation/` prefix among them."""

    def settle(self, weights: dict[str, torch.Tensor], figures: Mapping[str, float]) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """The best weights with what their validation chose (a threshold, say) written into them."""
        return weights

    # -- evaluate ---------------------------------------------------------------------------

    def written(
        self,
        network: torch.nn.Module,  # noqa: ARG002 - not every task writes
        input_ids: Sequence[Sequence[int]],  # noqa: ARG002
        tokenizer: Any,  # noqa: ARG002
        state: State,  # noqa: ARG002
    ) -> Outputs:
        """What the network writes about encoded inputs, in their order: outputs beside those of `loss`."""
        return {}

    @abstractmethod
    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """One row an example: `id`, target, prediction and what the metrics need."""

    @abstractmethod
    def metrics(self, state: State) -> list[Metric]:
        """The figures of this task, the main one first."""

    def deciding_metric(self, state: State) -> Metric:
        """The one of `metrics` that is named `main_metric`."""
        return next(metric for metric in self.metrics(state) if metric.name == self.main_metric)

    @property
    def baseline_columns(self) -> list[str]:
        """Columns of the prepared splits that `baselines` is given."""
        return ["id", *self.text_columns, *self.target_columns, "words"]

    @abstractmethod
    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Simple models trained on the same split: name -> function from a frame to `predictions`."""

    @abstractmethod
    def report_sections(self, predictions: pd.DataFrame, state: State) -> list[Section]:
        """The task's own tables and pictures for the evaluation report."""

    def examine(self, network: torch.nn.Module, outputs: Outputs, tokenizer: Path, state: State) -> Findings:  # noqa: ARG002
        """What more can be told with the network itself at hand: samples of its writing, say.

        Args:
            network: In evaluation mode, on its device.
            outputs: Those for the test split.
            tokenizer: Folder with `tokenizer.json`.
            state: The task's.
        """
        return Findings()

    @abstractmethod
    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:
        """The wrong predictions, worst first, readable."""

    # -- export and serving -----------------------------------------------------------------

    def fixed_width(self, outputs: Outputs) -> Outputs:
        """The outputs as vectors that compare between texts of any length, for drift; as they are by default."""
        return outputs

    @abstractmethod
    def example_inputs(self) -> list[dict[str, Any]]:
        """A few natural inputs, as `decode`'s users would give them."""

    def natural_inputs(self, table: pa.Table) -> list[dict[str, Any]]:
        """What a user would ask of the rows of a prepared split; examples where a model goes on from a prompt."""
        if self.continues:
            return self.example_inputs()
        rows: list[dict[str, Any]] = table.select(list(self.text_columns)).to_pylist()
        return rows

    @abstractmethod
    def parse_inputs(self, values: Sequence[Any]) -> pd.DataFrame:
        """Natural inputs (a string, a record, a row) as a frame with the task's text columns.

        Raises:
            UserError: An input is empty or of a wrong kind.
        """

    def prompts(self, frame: pd.DataFrame, state: State) -> list[str]:  # noqa: ARG002 - a prompt needs no more
        """What a model that writes is given for parsed inputs: their text."""
        texts: list[str] = frame[self.text_columns[0]].tolist()
        return texts

    def decode(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:
        """Raw outputs as natural ones, plain JSON values, one record an example.

        A task whose answers are made of more than the outputs overrides `answers` instead.
        """
        raise NotImplementedError

    def answers(
        self,
        outputs: Outputs,
        rows: Mapping[str, Sequence[Any]],  # noqa: ARG002 - few tasks ask for it
        given: Mapping[str, Sequence[str]],  # noqa: ARG002
        state: State,
    ) -> list[dict[str, Any]]:
        """Natural answers, one record a row.

        Args:
            outputs: Of the network for the rows.
            rows: Their texts as the network saw them, cleaned, and what `encode` made of them.
            given: Their texts as the user gave them, by column.
            state: The task's.
        """
        return self.decode(outputs, state)
