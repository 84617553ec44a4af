"""Translation: a text in another language."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.section import Section as Options
from textmill.tasks.base import State
from textmill.tasks.sequence_to_sequence import SequenceToSequence, SequenceToSequenceConfig
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


class TranslationConfig(SequenceToSequenceConfig):
    """Options of translation, beside those of generation from a source.

    Attributes:
        source_language: ISO 639-1 code of the source.
        target_language: ISO 639-1 code of the target; decides how BLEU splits words.
        check_languages: Whether to reject pairs in which one text is clearly in the language of the other.
        examples: Texts whose answers a registered version must reproduce; also examples in the documentation.
    """

    source_language: str = "en"
    target_language: str
    check_languages: bool = False
    examples: list[str] = ["A dog runs.", "Two men are talking."]


class Translation(SequenceToSequence):
    """Translates `text` from one language to another.

    State: that of `SequenceToSequence`, and `signatures`, sacrebleu's names of the metrics' settings.
    """

    Config: ClassVar[type[Options]] = TranslationConfig
    config: TranslationConfig

    name = "translation"
    evaluator = "textmill.evaluation.evaluators.translation.TranslationEvaluator"
    text_columns = ("text",)
    target_columns = ("translation",)
    text_target_columns = ("translation",)
    main_metric = "bleu"

    def bind_tokenizer(self, state: State, tokenizer: Any, folder: Path) -> State:
        """Return the state of `SequenceToSequence` with the metrics' signatures."""
        from textmill.metrics.text_overlap import signatures

        bound = super().bind_tokenizer(state, tokenizer, folder)
        return bound | {"signatures": signatures(self.config.target_language)}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return pairs that `SequenceToSequence.check` rejects, and those with a text in the wrong language."""
        rejected = super().check(frame, state)
        if not self.config.check_languages or state is not None:
            return rejected
        from textmill.text.languages import LanguageCheck

        languages = {"text": self.config.source_language, "translation": self.config.target_language}
        check = LanguageCheck(list(languages.values()))
        rows = {row.row: row for row in rejected}
        for name, language in languages.items():
            for position, text in enumerate(frame[name].tolist()):
                if position not in rows and check.is_other(text, language):
                    rows[position] = RejectedRow(position, name, f"is not in the language {language}")
        return [rows[position] for position in sorted(rows)]

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return the configured examples."""
        return [{"text": text} for text in self.config.examples]
