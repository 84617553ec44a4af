"""What both ways of telling a text in short have in common: columns, ROUGE, the rival and the report."""

from __future__ import annotations

from typing import Any

from textmill.config.section import Section as Options
from textmill.tasks.base import Task
from textmill.text.sentences import Units


class SummaryTextsConfig(Options):
    """Options of both.

    Attributes:
        units: What texts are made of: lines (the turns of a dialogue, say) or sentences.
        examples: Texts to show what the model does.
    """

    units: Units = "sentences"
    examples: list[str] = [
        "Returns True if the file exists, and False if it does not or cannot be read. A broken link counts as missing."
    ]


class SummaryTexts(Task):
    """A `summary` of a `text`; the column `references` may hold several true ones, as a JSON list."""

    config: Any

    text_columns = ("text",)
    target_columns = ("summary",)
    optional_columns = ("references",)
    stratify_column = None
    main_metric = "rougeL"

    def example_inputs(self) -> list[dict[str, Any]]:
        """The configured examples."""
        return [{"text": text} for text in self.config.examples]
