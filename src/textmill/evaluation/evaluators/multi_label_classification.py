"""Evaluate multi-label classification."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from textmill.evaluation.evaluator import Evaluator, ExaminesNetwork, Report
from textmill.metrics import label_sets
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State
from textmill.tasks.multi_label_classification import MultiLabelClassification

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

log = logging.getLogger("textmill")


class MultiLabelClassificationEvaluator(Evaluator, ExaminesNetwork):
    """Measures predicted sets of labels."""

    task: MultiLabelClassification

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return the table of `metrics.label_sets.label_set_table`."""
        return self._table(outputs["logits"], outputs["margins"], frame, state)

    def _table(self, logits: NDArray[Any], margins: NDArray[Any], frame: pd.DataFrame, state: State) -> pd.DataFrame:
        wanted = ("id", *self.task.text_columns, *self.task.target_columns)
        kept = frame[[name for name in wanted if name in frame]]
        actual = self.task.label_matrix(frame, state["labels"])
        return label_sets.label_set_table(logits, margins, actual, kept, state["labels"])

    def metrics(self, state: State) -> list[Metric]:
        """Return macro F1 (the main one), micro and weighted F1, exact match, log loss, and those of each label."""
        return label_sets.label_set_metrics(state["labels"])

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `label_shares`, and `tfidf_one_against_rest`; both have thresholds chosen on validation."""
        from textmill.metrics.baselines import word_baselines

        target, actual = (self.task.label_matrix(frame, state["labels"]) for frame in (train, validation))
        fitted = word_baselines.fit_label_sets(train, validation, target, actual, options, seed)

        def predictor(baseline: word_baselines.LabelSets) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: self._table(*baseline(frame), frame, state)

        return {name: predictor(baseline) for name, baseline in fitted.items()}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return the labels that are never predicted, the metrics of every label, and the wrong predictions."""
        missing = label_sets.never_predicted(predictions, state["labels"])
        if missing:
            log.warning("evaluate: the model never predicts %s", ", ".join(missing))
        errors = label_sets.label_set_errors(predictions, ["id", *self.task.text_columns])
        sections = label_sets.label_set_sections(predictions, state["labels"])
        return Report(sections, errors, {"labels_never_predicted": float(len(missing))})

    def examine(self, network: torch.nn.Module, outputs: Outputs, tokenizer: Path, state: State) -> Report:
        """Return the threshold of each label."""
        logits: Any = network.thresholds
        table = pd.DataFrame(
            {
                "label": state["labels"],
                "share of training rows": [round(share, 4) for share in state["shares"]],
                "threshold": label_sets.probabilities(logits.cpu().numpy()).round(4),
            }
        )
        text = "A label is predicted where its probability exceeds the threshold of its highest F1 on validation."
        return Report([Section("Thresholds", text, table)])
