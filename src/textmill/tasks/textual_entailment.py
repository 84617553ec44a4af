"""Textual entailment and other relations of two texts: one label a pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.metrics.base import Outputs
from textmill.tasks.base import State, StepOutput
from textmill.tasks.sentence_pairs import SentencePairs
from textmill.tasks.text_classification import at_least_two_labels
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from textmill.models.base import Model
    from textmill.models.sentence_encoder import PairClassifier


class TextualEntailmentConfig(Options):
    """Options of textual entailment.

    Attributes:
        labels: The labels in their order; None learns them from the training split, sorted.
    """

    labels: Annotated[list[str], Field(min_length=2)] | None = None


class TextualEntailment(SentencePairs):
    """One label for a pair of texts, by a softmax over u, v and |u - v| of their vectors.

    The network reads the texts separately, so that their vectors can be stored and compared with many others.

    State: `labels`, the names in the order of the network's outputs.
    """

    Config: ClassVar[type[Options]] = TextualEntailmentConfig
    config: TextualEntailmentConfig

    name = "textual_entailment"
    evaluator = "textmill.evaluation.evaluators.textual_entailment.TextualEntailmentEvaluator"
    target_columns = ("label",)
    encoded_targets: ClassVar[Mapping[str, str]] = {"label_id": "int64"}
    stratify_column = "label"
    main_metric = "weighted_f1"
    monitor = "validation/weighted_f1"

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Return the labels: as configured, or those of the training split, sorted.

        Raises:
            UserError: The training split has fewer than two labels.
        """
        learned = at_least_two_labels(frames)
        return {"labels": self.config.labels or learned}

    def check_targets(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows with a missing or unknown label."""
        known = state["labels"] if state else self.config.labels
        rejected = []
        for position, value in enumerate(frame["label"].tolist()):
            if not isinstance(value, str) or not value.strip():
                rejected.append(RejectedRow(position, "label", "is missing"))
            elif known and value.strip() not in known:
                reason = f"{value[:60]!r} is none of the labels {', '.join(known[:8])}"
                rejected.append(RejectedRow(position, "label", reason))
        return rejected

    def encode_targets(self, frame: pd.DataFrame, state: State) -> dict[str, list[Any]]:
        """Return `label_id`, the label's position."""
        if "label" not in frame:
            return {}
        return {"label_id": [state["labels"].index(label.strip()) for label in frame["label"]]}

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a head over two vectors."""
        from textmill.models.sentence_encoder import PairClassifier

        return PairClassifier(model.build_encoder(pretrained), len(state["labels"]))

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the cross-entropy, and the vectors (B, D) and `logits` (B, labels)."""
        from torch.nn.functional import cross_entropy

        outputs = self.embed(network, batch)
        classifier: PairClassifier = network  # type: ignore[assignment]
        logits = classifier.pair_head(*outputs.values())
        return StepOutput(cross_entropy(logits, batch["label_id"]), {**outputs, "logits": logits})

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `weighted_f1`, `macro_f1`, `accuracy` and `loss` (cross-entropy)."""
        from textmill.metrics.categories import validation_metrics

        return validation_metrics(outputs["logits"], rows["label_id"], state["labels"])

    def pair_answers(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:
        """Return `label`, its `probability`, and the `probabilities` of all labels, for each pair."""
        from textmill.metrics.categories import category_answers

        return category_answers(outputs["logits"], state["labels"])
