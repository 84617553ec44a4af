"""Evaluate textual entailment."""

from __future__ import annotations

import pandas as pd

from textmill.evaluation.evaluators.text_classification import TextClassificationEvaluator
from textmill.tasks.base import State


class TextualEntailmentEvaluator(TextClassificationEvaluator):
    """Measures labels of pairs; the baselines read both texts as one."""

    baseline_columns = ["id", "label", "words"]

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return the wrong predictions, the most confident first."""
        wrong = predictions[predictions["label"] != predictions["prediction"]]
        table = wrong[["id", *self.task.text_columns, "label", "prediction", "confidence"]]
        return table.sort_values(["confidence", "id"], ascending=[False, True], kind="stable", ignore_index=True)
