"""Text classification: one label for a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from textmill.config.section import Section as Options
from textmill.config.types import Fraction
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import CalibratesWeights, LearnsFromTeacher
from textmill.tasks.base import State, StepOutput, Task
from textmill.text import label_shares
from textmill.text.checks import failed_rows
from textmill.text.labels import label_names
from textmill.text.rejected_rows import RejectedRow
from textmill.text.tokens import encoded_texts

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from textmill.models.base import Model

_UNKNOWN = "is none of the labels"
_SMALLEST_SHARE = 1e-6
"""Share of a configured label that the training split lacks."""
_LIST = "is a list: several labels a row are the task multi_label_classification"


class PredictsLabelConfig(Options):
    """Options of a task that predicts a label.

    Attributes:
        labels: The labels in their order; None learns them from the training split, sorted.
    """

    labels: Annotated[list[str], Field(min_length=2)] | None = None

    @field_validator("labels")
    @classmethod
    def _no_label_twice(cls, labels: list[str] | None) -> list[str] | None:
        if labels and len(set(labels)) < len(labels):
            raise ValueError("a label is listed twice")
        return labels


class PredictsLabel(Task):
    """A task whose target is one of several labels, in the column `label`.

    State: `labels`, the names in the order of the network's outputs.
    """

    Config: ClassVar[type[Options]] = PredictsLabelConfig
    config: PredictsLabelConfig

    target_columns = ("label",)
    stratify_column = "label"
    main_metric = "weighted_f1"
    monitor = "validation/weighted_f1"
    problem_type = "single_label_classification"

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Return the labels: as configured, or those of the training split, sorted.

        Raises:
            UserError: The training split has fewer than two labels.
        """
        learned = sorted({name for frame in frames for name in label_names(frame["label"].dropna().drop_duplicates())})
        if len(learned) < 2:
            seen = f"one label only, {learned[0]!r}" if learned else "no label"
            fix = "Map a column with at least two labels"
            raise UserError(f"the training split has {seen}", where="prepare.read.columns.label", fix=fix)
        return {"labels": self.config.labels or learned}

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `weighted_f1`, `macro_f1`, `accuracy` and `loss` (cross-entropy without smoothing)."""
        from textmill.metrics.categories import validation_metrics

        return validation_metrics(outputs["logits"], rows["label_id"], state["labels"])


class TextClassificationConfig(PredictsLabelConfig):
    """Options of text classification.

    Attributes:
        label_smoothing: Share of the target spread evenly over all labels (Szegedy et al. 2016).
        r_drop: Weight of the divergence between two passes with different dropout (Liang et al. 2021,
            "R-Drop"); above 0, training computes every row twice.
        balance: What helps rare labels in training. `class_weights`: a row counts by a power of the inverse
            share of its label. `logit_adjustment`: the logarithm of the share is added to the logit in
            training only (Menon et al. 2021, "Long-tail learning via logit adjustment").
        balance_strength: The power, and the factor of the logarithm.
        distillation: Weight of the teacher in the loss; the labels have the rest (Hinton et al. 2015). Above 0, the
            data needs a teacher (`prepare.teacher`).
        temperature: Divisor of both models' logits in the comparison with the teacher.
        offsets: Whether a number is added to each label's logit, chosen on validation for the best macro F1.
        offsets_lose: Largest loss of validation's weighted F1 by the offsets.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    r_drop: Annotated[float, Field(ge=0)] = 0.0
    balance: Literal["none", "class_weights", "logit_adjustment"] = "none"
    balance_strength: Annotated[float, Field(gt=0)] = 1.0
    distillation: Fraction = 0.0
    temperature: Annotated[float, Field(gt=0)] = 2.0
    offsets: bool = False
    offsets_lose: Annotated[float, Field(ge=0)] = 0.005


class TextClassification(PredictsLabel, CalibratesWeights, LearnsFromTeacher):
    """One label for a text, by a softmax over the labels.

    State: `labels`, and with `balance` also `label_shares`, the labels' shares of the training split.

    Where several people judged a text, the column `label_shares` may hold a JSON record of their votes,
    `{"good": 7, "bad": 3}`. These shares are then the training target in place of the one label, so that the
    model learns which texts are ambiguous (Peterson et al. 2019, "Human uncertainty makes classification
    more robust"). All metrics use `label`.
    """

    Config: ClassVar[type[Options]] = TextClassificationConfig
    config: TextClassificationConfig

    name = "text_classification"
    evaluator = "textmill.evaluation.evaluators.text_classification.TextClassificationEvaluator"
    text_columns = ("text",)
    optional_columns = ("label_shares",)

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """See `PredictsLabel.fit`; counts the labels if the training is balanced."""
        counts: Counter[str] = Counter()

        def counted() -> Iterator[pd.DataFrame]:
            for frame in frames:
                found = label_names(frame["label"].dropna()).value_counts()
                counts.update(dict(zip(map(str, found.index), found.tolist(), strict=True)))
                yield frame

        state = super().fit(counted())
        if self.config.balance == "none":
            return state
        return {**state, "label_shares": [counts[name] / counts.total() for name in state["labels"]]}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without text or label, or with an unknown label; the first reason of each."""
        import pandera.pandas as pa

        known = state["labels"] if state else self.config.labels
        label_checks = [
            pa.Check(lambda column: label_names(column) != "", error="is empty"),
            pa.Check(lambda column: ~label_names(column).str.startswith('["'), error=_LIST),
        ]
        if known:
            allowed = set(known)
            label_checks.append(pa.Check(lambda column: label_names(column).isin(allowed), error=_UNKNOWN))
        schema = pa.DataFrameSchema(
            {
                "text": pa.Column(
                    checks=pa.Check(lambda column: column.astype(str).str.strip() != "", error="is empty"),
                    nullable=False,
                ),
                "label": pa.Column(checks=label_checks, nullable=False),
            }
        )
        rejected = failed_rows(schema, frame, unknown=_UNKNOWN, known=known or [])
        positions = {row.row for row in rejected}
        unusable = label_shares.problems(frame["label_shares"], known) if "label_shares" in frame else {}
        return rejected + [
            RejectedRow(position, "label_shares", reason)
            for position, reason in unusable.items()
            if position not in positions
        ]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids`, `length` (tokens), and, where the data has them, `label_id` and `label_probabilities`."""
        columns = encoded_texts(frame["text"].tolist(), tokenizer, max_length)
        if "label" in frame:
            positions = {label: position for position, label in enumerate(state["labels"])}
            names = label_names(frame["label"])
            columns["label_id"] = names.map({name: positions[name] for name in names.unique()}).tolist()
        if "label_shares" in frame:
            columns["label_probabilities"] = label_shares.probabilities(
                frame["label_shares"], label_names(frame["label"]), state["labels"]
            )
        return columns

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a pooled linear head over the labels."""
        import torch

        from textmill.models.sequence_classifier import SequenceClassifier

        network = SequenceClassifier(model.build_encoder(pretrained), len(state["labels"]))
        if self.config.balance != "none":
            shares = torch.tensor(state["label_shares"]).clamp(min=_SMALLEST_SHARE)
            network.register_buffer("label_shares", shares, persistent=False)
        return network

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` (B, T), and any targets: `label_id` (B,), others (B, labels)."""
        from textmill.text.batches import padded_batch

        columns = {"label_id": "int64", "label_probabilities": "float32", "teacher_logits": "float32"}
        return padded_batch(rows, columns)

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the cross-entropy to the label or its probabilities, and `logits` (B, labels).

        In training, `distillation` replaces a share of it by the divergence from the teacher.
        """
        import torch

        from textmill.models.losses.regularisation import distillation_loss, symmetric_divergence

        twice = self.config.r_drop > 0 and network.training
        inputs = {name: batch[name].repeat(1 + twice, 1) for name in ("input_ids", "attention_mask")}
        outputs = network(**inputs)
        target = batch.get("label_probabilities", batch["label_id"])
        if twice:
            target = torch.cat([target, target])
        logits = outputs["logits"].float()  # autocast computes them in half precision
        loss = self._cross_entropy(logits, target, network)
        if (share := self.config.distillation) and network.training:
            teacher = _teacher_logits(batch).repeat(1 + twice, 1)
            loss = (1 - share) * loss + share * distillation_loss(logits, teacher, self.config.temperature)
        if twice:
            loss = loss + self.config.r_drop * symmetric_divergence(*logits.chunk(2))
        return StepOutput(loss, outputs)

    def _cross_entropy(self, logits: torch.Tensor, target: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Return the mean cross-entropy, balanced in training as the options say."""
        from torch.nn.functional import cross_entropy

        smoothing, strength = self.config.label_smoothing, self.config.balance_strength
        if self.config.balance == "none" or not network.training:
            return cross_entropy(logits, target, label_smoothing=smoothing)
        shares: torch.Tensor = network.label_shares  # type: ignore[assignment]
        if self.config.balance == "logit_adjustment":
            return cross_entropy(logits + strength * shares.log(), target, label_smoothing=smoothing)
        weights = shares**-strength
        weights = weights / (shares * weights).sum()  # 1 on average, so that the learning rate keeps its meaning
        of_row = weights[target] if target.ndim == 1 else target @ weights
        return (of_row * cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")).mean()

    @property
    def calibrates(self) -> bool:
        """Whether offsets are chosen on validation."""
        return self.config.offsets

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """See `PredictsLabel.validation_metrics`; with offsets they are those of the best `offset_POSITION`."""
        from textmill.metrics.categories import best_offsets, validation_metrics

        logits, labels = outputs["logits"], state["labels"]
        if not self.config.offsets:
            return validation_metrics(logits, rows["label_id"], labels)
        offsets = best_offsets(logits, rows["label_id"], self.config.offsets_lose)
        metrics = validation_metrics(logits + offsets, rows["label_id"], labels)
        return metrics | {f"offset_{position}": value for position, value in enumerate(offsets)}

    def calibrate_weights(
        self, weights: dict[str, torch.Tensor], metrics: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Return the weights with the offsets added to the biases of the labels."""
        if not weights:
            return weights
        bias = weights["output.bias"]
        offsets = [metrics[f"offset_{position}"] for position in range(len(bias))]
        return weights | {"output.bias": bias + bias.new_tensor(offsets)}

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return two short reviews."""
        return [{"text": "I love this product"}, {"text": "This product is bad"}]

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return `label`, its `probability`, and the `probabilities` of all labels, for each row."""
        from textmill.metrics.categories import category_answers

        return category_answers(outputs["logits"], state["labels"])


def _teacher_logits(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if "teacher_logits" not in batch:
        fix = "Set fetch.teacher and prepare.teacher (conf/experiment/movie_reviews_student.yaml shows both)"
        raise UserError("the data has no teacher's logits", where="task.distillation", fix=fix)
    return batch["teacher_logits"]
