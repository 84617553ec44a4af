"""Translation: a text in another language."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.section import Section as Options
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State
from textmill.tasks.sequence_to_sequence import TEXTS, SequenceToSequence, SequenceToSequenceConfig
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("textmill")

_SAMPLES = 12


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
    text_columns = ("text",)
    target_columns = ("translation",)
    text_target_columns = ("translation",)
    main_metric = "bleu"

    def learn_tokens(self, state: State, tokenizer: Any) -> State:
        """And the metrics' signatures; see `SequenceToSequence.learn_tokens`."""
        from textmill.metrics.text_overlap import signatures

        return super().learn_tokens(state, tokenizer) | {"signatures": signatures(self.config.target_language)}

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

    # -- evaluate ---------------------------------------------------------------------------

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """`id`, `text`, `translation` (the reference), `prediction`, and what BLEU and chrF count."""
        return self._table(frame, outputs[TEXTS].tolist())

    def metrics(self, state: State) -> list[Metric]:
        """BLEU and chrF."""
        from textmill.metrics import text_overlap

        for name, signature in state.get("signatures", {}).items():
            log.info("%s: sacrebleu %s", name, signature)
        return text_overlap.metrics(self.config.target_language)

    def baselines(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame,  # noqa: ARG002 - neither has anything to choose
        state: State,  # noqa: ARG002
        options: Mapping[str, Any],
        seed: int,  # noqa: ARG002
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """`translation_memory`, the translation of the nearest source of the training split, and `copy`."""
        from textmill.metrics.baselines.nearest_text import NearestText

        memory = NearestText(train["text"].tolist(), options)
        known = train["translation"].tolist()
        return {
            "translation_memory": lambda frame: self._table(
                frame, [known[row] for row in memory.nearest(frame["text"].tolist())]
            ),
            "copy": lambda frame: self._table(frame, frame["text"].tolist()),
        }

    def report_sections(self, predictions: pd.DataFrame, state: State) -> list[Section]:
        """Some translations as they come, and the metrics' signatures."""
        step = max(1, len(predictions) // _SAMPLES)
        table = predictions.iloc[::step].head(_SAMPLES)[["text", "translation", "prediction"]]
        told = "; ".join(f"{name} {signature}" for name, signature in state.get("signatures", {}).items())
        text = f"Every {step}th row of the test split. Figures by sacrebleu: {told}."
        return [Section("Translations", text, table.reset_index(drop=True))]

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """The translations furthest from their references, by chrF of each."""
        from textmill.metrics.text_overlap import sentence_chrf

        chrf = sentence_chrf({str(name): predictions[name].to_numpy() for name in predictions})
        table = predictions[["id", "text", "translation", "prediction"]].assign(chrf=chrf)
        return table.sort_values(["chrf", "id"], kind="stable", ignore_index=True)

    def _table(self, frame: pd.DataFrame, texts: Sequence[str]) -> pd.DataFrame:
        import pandas as pd

        from textmill.metrics.text_overlap import count_columns

        columns = {name: frame[name].to_numpy() for name in ("id", "text", "translation")}
        counts = count_columns(texts, [frame["translation"].tolist()], self.config.target_language)
        return pd.DataFrame({**columns, "prediction": list(texts), **counts})

    # -- export and serving -----------------------------------------------------------------

    def example_inputs(self) -> list[dict[str, Any]]:
        """The configured examples."""
        return [{"text": text} for text in self.config.examples]
