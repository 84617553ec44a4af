"""Multi-label classification: any number of labels for a text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import CalibratesWeights
from textmill.tasks.base import State, StepOutput, Task
from textmill.tasks.text_classification import PredictsLabelConfig
from textmill.text.checks import empty_rows
from textmill.text.label_lists import read_flag, read_labels
from textmill.text.rejected_rows import RejectedRow
from textmill.text.tokens import encoded_texts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from textmill.models.base import Model

_THRESHOLDS = "thresholds"
_NAMED = 8


class MultiLabelClassificationConfig(PredictsLabelConfig):
    """Options of multi-label classification.

    Attributes:
        columns: Columns of 0 and 1, one a label; None reads the column `labels`.
        separator: Text between the labels of a cell that is not a list.
        pattern: Regular expression whose matches (or first groups) are the labels of a cell; None splits it.
        names: Label in the data -> name of the label; others keep theirs.
    """

    columns: Annotated[list[str], Field(min_length=2)] | None = None
    separator: Annotated[str, Field(min_length=1)] = "|"
    pattern: str | None = None
    names: dict[str, str] = {}

    @model_validator(mode="after")
    def _is_consistent(self) -> MultiLabelClassificationConfig:
        if self.columns is not None and self.labels is not None:
            raise ValueError("set either columns or labels: the columns are the labels")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression ({error})") from None
        return self


class MultiLabelClassification(Task, CalibratesWeights):
    """Any number of labels for a text, by a sigmoid for each label.

    A label is predicted where its logit exceeds its threshold: the one with the label's highest F1 on validation.

    State: `labels`, the names in the order of the network's outputs, and `shares` of the training rows with each.
    """

    Config: ClassVar[type[Options]] = MultiLabelClassificationConfig
    config: MultiLabelClassificationConfig

    name = "multi_label_classification"
    evaluator = "textmill.evaluation.evaluators.multi_label_classification.MultiLabelClassificationEvaluator"
    text_columns = ("text",)
    target_columns: tuple[str, ...] = ("labels",)
    main_metric = "macro_f1"
    monitor = "validation/macro_f1"
    problem_type = "multi_label_classification"

    def __init__(self, config: MultiLabelClassificationConfig) -> None:
        super().__init__(config)
        if config.columns is not None:
            self.target_columns = tuple(config.columns)

    def labels_of(self, row: Mapping[Any, Any]) -> list[str]:
        """Return the labels of a row of target columns.

        Raises:
            ValueError: A cell does not hold labels; the message begins with the column's name.
        """
        names = self.config.names
        if self.config.columns is None:
            try:
                found = read_labels(row["labels"], self.config.separator, self.config.pattern)
            except ValueError as error:
                raise ValueError("labels", str(error)) from error
            return list(dict.fromkeys(names.get(label, label) for label in found))
        labels = []
        for column in self.config.columns:
            try:
                if read_flag(row[column]):
                    labels.append(names.get(column, column))
            except ValueError as error:
                raise ValueError(column, str(error)) from error
        return labels

    def label_matrix(self, frame: pd.DataFrame, labels: Sequence[str]) -> NDArray[np.bool_]:
        """Return whether each row has each label, shape (rows, labels); labels that are not listed are left out."""
        import numpy as np

        place = {label: position for position, label in enumerate(labels)}
        matrix = np.zeros((len(frame), len(labels)), bool)
        if not set(self.target_columns) <= set(frame):  # new texts
            return matrix
        for row, values in enumerate(frame[list(self.target_columns)].to_dict("records")):
            matrix[row, [place[label] for label in self.labels_of(values) if label in place]] = True
        return matrix

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Return the labels: as configured, or those of the training split, sorted; and their shares.

        Raises:
            UserError: The training split has fewer than two labels.
        """
        rows, counts = 0, Counter[str]()
        for frame in frames:
            rows += len(frame)
            for values in frame[list(self.target_columns)].to_dict("records"):
                counts.update(self.labels_of(values))
        columns = [self.config.names.get(name, name) for name in self.config.columns or ()]
        if len(counts) < 2:
            seen = f"one label only, {next(iter(counts))!r}" if counts else "no label"
            fix = "Map a column with at least two labels, or set task.separator"
            where = f"prepare.read.columns.{self.target_columns[0]}"
            raise UserError(f"the training split has {seen}", where=where, fix=fix)
        labels = self.config.labels or columns or sorted(counts)
        return {"labels": labels, "shares": [counts[label] / rows for label in labels]}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without text, with labels that cannot be read, or with an unknown label."""
        rejected = empty_rows(frame, self.text_columns)
        known = state["labels"] if state else self.config.labels
        for row, values in enumerate(frame[list(self.target_columns)].to_dict("records")):
            try:
                unknown = [label for label in self.labels_of(values) if known and label not in known]
            except ValueError as error:
                rejected.setdefault(row, RejectedRow(row, *error.args))
                continue
            if unknown and known:
                choice = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
                reason = f"has {unknown[0]!r}, which is none of the labels {choice}"
                rejected.setdefault(row, RejectedRow(row, self.target_columns[0], reason))
        return [rejected[row] for row in sorted(rejected)]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids`, `length` (tokens), and, where the data has labels, `targets`: 0 or 1 for each label."""
        columns = encoded_texts(frame["text"].tolist(), tokenizer, max_length)
        if set(self.target_columns) <= set(frame):
            columns["targets"] = self.label_matrix(frame, state["labels"]).astype(float).tolist()
        return columns

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a pooled linear head over the labels."""
        from textmill.models.multi_label_classifier import MultiLabelClassifier

        return MultiLabelClassifier(model.build_encoder(pretrained), state["shares"])

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` (B, T), and any `targets` (B, labels)."""
        from textmill.text.batches import padded_batch

        return padded_batch(rows, {"targets": "float32"})

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the binary cross-entropy, the mean over rows and labels, and `logits`, `margins` (B, labels)."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        outputs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return StepOutput(binary_cross_entropy_with_logits(outputs["logits"].float(), batch["targets"]), outputs)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `macro_f1` and `micro_f1` at the best thresholds, `loss`, and each threshold, `threshold_POSITION`."""
        import numpy as np

        from textmill.metrics.label_sets import validation_metrics

        metrics, thresholds = validation_metrics(outputs["logits"], np.asarray(rows["targets"]) > 0)
        return metrics | {f"threshold_{position}": value for position, value in enumerate(thresholds.tolist())}

    def calibrate_weights(
        self, weights: dict[str, torch.Tensor], metrics: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Return the weights with the thresholds of the best validation."""
        if not weights:
            return weights
        values = [metrics[f"threshold_{position}"] for position in range(len(weights[_THRESHOLDS]))]
        return weights | {_THRESHOLDS: weights[_THRESHOLDS].new_tensor(values)}

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return two short texts."""
        return [{"text": "Thank you, that made me laugh!"}, {"text": "I am sorry that it broke again."}]

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return `prediction`, a text, the predicted `labels` and the `probabilities` of all labels, for each row."""
        from textmill.metrics.label_sets import label_set_answers

        return label_set_answers(outputs["logits"], outputs["margins"], state["labels"])
