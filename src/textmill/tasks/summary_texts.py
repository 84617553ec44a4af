"""The shared part of extractive and abstractive summarisation: columns, options and examples."""

from __future__ import annotations

from typing import Any

from textmill.config.section import Section as Options
from textmill.tasks.base import Task
from textmill.text.sentences import Units


class SummaryTextsConfig(Options):
    """Options of both kinds of summarisation.

    Attributes:
        units: Units of a text: lines (the turns of a dialogue, say) or sentences.
        examples: Texts whose answers a registered version must reproduce.
    """

    units: Units = "sentences"
    examples: list[str] = [
        "Returns True if the file exists, and False if it does not or cannot be read. A broken link counts as missing."
    ]


class SummaryTexts(Task):
    """A `summary` of a `text`; the column `references` may hold several references, as a JSON list."""

    config: Any

    text_columns = ("text",)
    target_columns = ("summary",)
    optional_columns = ("references",)
    main_metric = "rougeL"

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return the configured examples."""
        return [{"text": text} for text in self.config.examples]
