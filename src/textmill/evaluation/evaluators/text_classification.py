"""Evaluate text classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from textmill.evaluation.evaluator import Evaluator, FindsLabelIssues, Report
from textmill.metrics.base import Metric, Outputs
from textmill.metrics.categories import category_metrics, category_table, encode, probabilities_of, softmax
from textmill.tasks.base import State
from textmill.tasks.text_classification import TextClassification


class TextClassificationEvaluator(Evaluator, FindsLabelIssues):
    """Measures predicted labels and their probabilities."""

    task: TextClassification

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, the texts, `label`, `prediction`, `confidence` and `probability_LABEL` of each row."""
        return self._table(softmax(outputs["logits"]), frame, state)

    def _table(self, probabilities: Any, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        return category_table(probabilities, frame, state["labels"], ["id", *self.task.text_columns])

    def metrics(self, state: State) -> list[Metric]:
        """Return weighted F1 (the main one), macro F1, accuracy, Matthews correlation, calibration, log loss."""
        return category_metrics(state["labels"])

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `majority`, and linear models over TF-IDF with their regularisation chosen on validation."""
        from textmill.metrics.baselines import word_baselines

        def predictor(probabilities: word_baselines.Probabilities) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: self._table(probabilities(frame), frame, state)

        fitted = word_baselines.fit(train, validation, state["labels"], options, seed)
        return {name: predictor(probabilities) for name, probabilities in fitted.items()}

    def label_issues(self, train: pd.DataFrame, state: State, seed: int) -> pd.DataFrame:
        """See `FindsLabelIssues`."""
        from textmill.metrics.label_issues import find_label_issues

        return find_label_issues(train, state["labels"], seed)

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return confusions, calibration, and the wrong predictions."""
        from textmill.metrics.category_sections import category_sections, category_warnings

        sections = category_sections(predictions, state["labels"])
        return Report(sections, self.errors(predictions, state), warnings=category_warnings(predictions))

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return the wrong predictions by rising probability of the true label."""
        wrong = predictions[predictions["label"] != predictions["prediction"]]
        labels = state["labels"]
        probabilities = probabilities_of({str(name): wrong[name].to_numpy() for name in wrong}, labels)
        of_label = probabilities[np.arange(len(wrong)), encode(wrong["label"].to_numpy(), labels)]
        columns = ["id", *self.task.text_columns, "label", "prediction", "confidence"]
        table = wrong[columns].assign(probability_of_label=of_label)
        return table.sort_values(["probability_of_label", "id"], kind="stable", ignore_index=True)
