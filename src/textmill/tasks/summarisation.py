"""Summarisation: a text told in short, in words of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textmill.config.section import Section as Options
from textmill.config.sections.generation import GenerationConfig
from textmill.metrics.base import Outputs
from textmill.tasks.base import State
from textmill.tasks.sequence_to_sequence import TEXTS, SequenceToSequence, SequenceToSequenceConfig
from textmill.tasks.summary_texts import SummaryTexts, SummaryTextsConfig

if TYPE_CHECKING:
    import pandas as pd


class SummarisationConfig(SummaryTextsConfig, SequenceToSequenceConfig):
    """Options of summarisation: those of every task that writes about a source, and of summaries."""

    generation: GenerationConfig = GenerationConfig(temperature=0.0, beams=4, max_new_tokens=60)


class Summarisation(SummaryTexts, SequenceToSequence):
    """Writes a summary, token by token."""

    Config: ClassVar[type[Options]] = SummarisationConfig
    config: SummarisationConfig

    name = "summarisation"
    text_target_columns = ("summary",)

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """`id`, `text`, `summary` (the reference), `prediction`, and ROUGE of each row."""
        from textmill.metrics import rouge

        return rouge.table(frame, "summary", outputs[TEXTS].tolist())
