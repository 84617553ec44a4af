"""Textual entailment and other relations of two texts: one label a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.metrics.base import Outputs
from textmill.tasks.base import State, StepOutput
from textmill.tasks.sentence_pairs import SentencePairs
from textmill.tasks.text_classification import PredictsLabel
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from textmill.models.base import Model
    from textmill.models.sentence_encoder import PairClassifier


class TextualEntailment(PredictsLabel, SentencePairs):
    """One label for a pair of texts, by a softmax over u, v and |u - v| of their vectors.

    The network reads the texts separately, so that their vectors can be stored and compared with many others.
    """

    name = "textual_entailment"
    evaluator = "textmill.evaluation.evaluators.textual_entailment.TextualEntailmentEvaluator"
    encoded_targets: ClassVar[Mapping[str, str]] = {"label_id": "int64"}

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

    def pair_answers(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:
        """Return `label`, its `probability`, and the `probabilities` of all labels, for each pair."""
        from textmill.metrics.categories import category_answers

        return category_answers(outputs["logits"], state["labels"])
