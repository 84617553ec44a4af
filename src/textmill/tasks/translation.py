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
    """Options of translation, beside those of every task that writes about a source.

    Attributes:
        source_language: ISO 639-1 code.
        target_language: ISO 639-1 code; BLEU splits words as it needs.
        check_languages: Whether pairs are rejected in which a text is surely in the language of the other.
        examples: Texts whose answers a registered version must give again, and the documentation's examples.
    """

    source_language: str = "en"
    target_language: str
    check_languages: bool = False
    examples: list[str] = ["A dog runs.", "Two men are talking."]


class Translation(SequenceToSequence):
    """Translates `text`, from one language to another.

    State: as of `SequenceToSequence`, and `signatures`, what sacrebleu calls the settings of the metrics.
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
        """Return the state with the vocabulary, see `SequenceToSequence`, and the metrics' signatures."""
        from textmill.metrics.text_overlap import signatures

        bound = super().bind_tokenizer(state, tokenizer, folder)
        return bound | {"signatures": signatures(self.config.target_language)}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Pairs that `SequenceToSequence.check` refuses, and those in which a language is mistaken for the other."""
        rejects = super().check(frame, state)
        if not self.config.check_languages or state is not None:
            return rejects
        from textmill.text.languages import LanguageCheck

        languages = {"text": self.config.source_language, "translation": self.config.target_language}
        check = LanguageCheck(list(languages.values()))
        refused = {reject.row for reject in rejects}
        for name, language in languages.items():
            for position, text in enumerate(frame[name].tolist()):
                if position not in refused and check.is_other(text, language):
                    refused.add(position)
                    rejects.append(RejectedRow(position, name, f"is not in the language {language}"))
        return sorted(rejects, key=lambda reject: reject.row)

    # -- serve ------------------------------------------------------------------------------

    def example_inputs(self) -> list[dict[str, Any]]:
        """The configured examples."""
        return [{"text": text} for text in self.config.examples]
