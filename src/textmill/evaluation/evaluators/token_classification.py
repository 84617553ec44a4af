"""Evaluate token classification."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from textmill.evaluation.evaluator import Evaluator, Report
from textmill.metrics import entities
from textmill.metrics.base import Metric, Outputs
from textmill.tasks.base import State
from textmill.tasks.token_classification import TokenClassification
from textmill.text.entities import read_entities

log = logging.getLogger("textmill")


class TokenClassificationEvaluator(Evaluator):
    """Measures entities as CoNLL 2003 does."""

    task: TokenClassification

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return the table of `metrics.entities.entity_table`."""
        found = [list(row) for row in self.task.entities(outputs, frame, state)]
        return entities.entity_table(frame, found, state["labels"])

    def metrics(self, state: State) -> list[Metric]:
        """Return F1 of entities (the main one), precision, recall, macro F1, and those of each label."""
        return entities.entity_metrics(state["labels"])

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `lexicon`: the texts that are mostly entities in training, wherever they occur."""
        texts = train["text"].tolist()
        known = [read_entities(cell, text) for cell, text in zip(train["entities"].tolist(), texts, strict=True)]
        find = entities.lexicon(texts, known, self.task.config.units)

        def predict(frame: pd.DataFrame) -> pd.DataFrame:
            return entities.entity_table(frame, list(map(find, frame["text"].tolist())), state["labels"])

        return {"lexicon": predict}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return the labels that are never predicted, the metrics of each label, and the rows with an error."""
        missing = entities.never_predicted(predictions, state["labels"])
        if missing:
            log.warning("evaluate: the model never predicts %s", ", ".join(missing))
        sections = entities.entity_sections(predictions, state["labels"])
        return Report(sections, entities.entity_errors(predictions), {"labels_never_predicted": float(len(missing))})
