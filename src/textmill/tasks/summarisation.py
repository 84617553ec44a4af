"""Abstractive summarisation: a short version of a text, in new words."""

from __future__ import annotations

from typing import ClassVar

from textmill.config.section import Section as Options
from textmill.config.sections.generation import GenerationConfig
from textmill.tasks.sequence_to_sequence import SequenceToSequence, SequenceToSequenceConfig
from textmill.tasks.summary_texts import SummaryTexts, SummaryTextsConfig


class SummarisationConfig(SummaryTextsConfig, SequenceToSequenceConfig):
    """Options of summarisation: those of generation from a source, and of summaries."""

    generation: GenerationConfig = GenerationConfig(temperature=0.0, beams=4, max_new_tokens=60)


class Summarisation(SummaryTexts, SequenceToSequence):
    """Generates a summary token by token."""

    Config: ClassVar[type[Options]] = SummarisationConfig
    config: SummarisationConfig

    name = "summarisation"
    evaluator = "textmill.evaluation.evaluators.summarisation.SummarisationEvaluator"
    text_target_columns = ("summary",)
