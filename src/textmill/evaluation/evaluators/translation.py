"""Evaluate translation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from textmill.evaluation.evaluator import Evaluator, Report
from textmill.evaluation.evaluators.sequence_to_sequence import ReportsReferenceLoss
from textmill.metrics import text_overlap
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State
from textmill.tasks.sequence_to_sequence import TEXTS
from textmill.tasks.translation import Translation

log = logging.getLogger("textmill")

_SAMPLES = 12


class TranslationEvaluator(Evaluator, ReportsReferenceLoss):
    """Measures BLEU and chrF."""

    task: Translation

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, `text`, `translation` (the reference), `prediction`, and the counts of BLEU and chrF."""
        return self._table(frame, outputs[TEXTS].tolist())

    def metrics(self, state: State) -> list[Metric]:
        """Return BLEU and chrF."""
        for name, signature in state.get("signatures", {}).items():
            log.info("%s: sacrebleu %s", name, signature)
        return text_overlap.metrics(self.task.config.target_language)

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `translation_memory`, the translation of the most similar training source, and `copy`, the source."""
        from textmill.metrics.baselines.nearest_text import NearestText

        memory = NearestText(train["text"].tolist(), options)
        translations = train["translation"].tolist()
        return {
            "translation_memory": lambda frame: self._table(
                frame, [translations[row] for row in memory.nearest(frame["text"].tolist())]
            ),
            "copy": lambda frame: self._table(frame, frame["text"].tolist()),
        }

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return some translations with the metrics' signatures, and all by rising chrF."""
        step = max(1, len(predictions) // _SAMPLES)
        table = predictions.iloc[::step].head(_SAMPLES)[["text", "translation", "prediction"]]
        signatures = "; ".join(f"{name} {signature}" for name, signature in state.get("signatures", {}).items())
        text = f"Every {step}th row of the test split. Metrics by sacrebleu: {signatures}."
        chrf = text_overlap.sentence_chrf({str(name): predictions[name].to_numpy() for name in predictions})
        errors = predictions[["id", "text", "translation", "prediction"]].assign(chrf=chrf)
        return Report(
            [Section("Translations", text, table.reset_index(drop=True))],
            errors.sort_values(["chrf", "id"], kind="stable", ignore_index=True),
        )

    def _table(self, frame: pd.DataFrame, texts: Sequence[str]) -> pd.DataFrame:
        columns = {name: frame[name].to_numpy() for name in ("id", "text", "translation")}
        counts = text_overlap.count_columns(texts, [frame["translation"].tolist()], self.task.config.target_language)
        return pd.DataFrame({**columns, "prediction": list(texts), **counts})
