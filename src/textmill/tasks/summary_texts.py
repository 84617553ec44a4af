"""What both ways of telling a text in short have in common: columns, ROUGE, the rival and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from textmill.config.section import Section as Options
from textmill.metrics.base import Metric, Section
from textmill.tasks.base import State, Task
from textmill.text.sentences import Units

if TYPE_CHECKING:
    import pandas as pd


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

    def metrics(self, state: State) -> list[Metric]:  # noqa: ARG002 - the same for all
        """ROUGE-1, -2 and -L."""
        from textmill.metrics import rouge

        return rouge.metrics()

    @property
    def baseline_columns(self) -> list[str]:
        """Texts and their summaries."""
        return ["id", "text", "summary"]

    def baselines(
        self,
        train: pd.DataFrame,  # noqa: ARG002 - it learns nothing
        validation: pd.DataFrame,
        state: State,  # noqa: ARG002
        options: Mapping[str, Any],  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """`lead`: the beginning of the text, as long as is best on validation."""
        from textmill.metrics import rouge

        return {"lead": rouge.lead_baseline(validation, "summary", self.config.units)}

    def report_sections(self, predictions: pd.DataFrame, state: State) -> list[Section]:  # noqa: ARG002
        """Some summaries as they come."""
        from textmill.metrics import rouge

        return [rouge.section(predictions, "summary")]

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """The summaries furthest from their references."""
        from textmill.metrics import rouge

        return rouge.worst(predictions, "summary")

    def example_inputs(self) -> list[dict[str, Any]]:
        """The configured examples."""
        return [{"text": text} for text in self.config.examples]
