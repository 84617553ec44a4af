"""Make pairs of a right and a plausible wrong answer to questions about the docstrings of Python packages."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar

from textmill.config.section import Section
from textmill.config.types import Fraction
from textmill.fetching.sources.archives import Archive
from textmill.fetching.sources.numpydoc_questions import NumpydocQuestionsConfig, NumpydocQuestionsSource


class NumpydocPreferencesConfig(NumpydocQuestionsConfig):
    """Options: those of the questions, and of the pairs.

    Attributes:
        prompt: Wording of a prompt, with `{context}` and `{question}`.
        refusal: Right answer to a question that the text does not answer.
        refused: Share of the answerable questions whose wrong answer is the refusal.
    """

    prompt: str = "{context}\n\n{question}"
    refusal: str = "The text does not say."
    refused: Fraction = 0.33


class NumpydocPreferencesSource(NumpydocQuestionsSource):
    """Make pairs of answers to the questions of `NumpydocQuestionsSource`.

    Further columns: `prompt`, `chosen`, `rejected`. The wrong answer is that to another question of the same kind
    about the same docstring, else about an earlier one of the package, or the refusal. The right answer to a
    question without an answer in the text is the refusal.
    """

    Config: ClassVar[type[Section]] = NumpydocPreferencesConfig
    config: NumpydocPreferencesConfig

    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """Yield pairs in the order of the questions; those without a wrong answer at hand are skipped."""
        earlier: defaultdict[str, list[str]] = defaultdict(list)
        for row, similar in self.questions(archive, package):
            draw = random.Random(f"{package}.{row['id']}")
            right = _line(row["answers"][0]["text"]) if row["answers"] else self.config.refusal
            others = [text for text in map(_line, similar) if text not in right and right not in text]
            others = others or [text for text in earlier[row["kind"]] if text not in right and right not in text]
            if row["answers"] and draw.random() < self.config.refused:
                others = [self.config.refusal]
            earlier[row["kind"]] += [text for text in map(_line, similar) if text not in earlier[row["kind"]]]
            if others:
                prompt = self.config.prompt.format(context=row["context"], question=row["question"])
                yield row | {"prompt": prompt, "chosen": right, "rejected": draw.choice(others)}


def _line(text: str) -> str:
    return " ".join(text.split())
