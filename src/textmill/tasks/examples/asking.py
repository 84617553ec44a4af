"""Ask a chat model what a task asks: rows as conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textmill.errors import UserError
from textmill.tasks.base import State, Task
from textmill.tasks.sequence_to_sequence import TEXTS
from textmill.text.answers import read_answers
from textmill.text.label_lists import read_flag

ANSWERS = TEXTS
"""The output that holds answers which are texts."""
CHAT_TASK = {"_target_": "textmill.tasks.instruction_tuning.InstructionTuning"}
"""The task of a chat model that is loaded as it comes."""
REFUSAL = "The text does not say."
"""Answer to a question that the text does not answer."""
FLAGS = ("no", "yes")
"""Answers to whether a document is relevant."""

Row = Mapping[str, Any]


def _passage(row: Row) -> str:
    cell = row["answers"]  # a frame has NaN where it is empty
    found = read_answers(cell if isinstance(cell, str) else None, row["context"])
    return found[0].text if found else REFUSAL


_PROMPTS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "text_classification": (
        "Classify the text as {labels}. Answer with the label alone.\n\nText: {text}",
        lambda row: row["label"],
    ),
    "textual_entailment": (
        "Is the relation of the two texts {labels}? Answer with one of them alone.\n\n"
        "First text: {text_a}\nSecond text: {text_b}",
        lambda row: row["label"],
    ),
    "translation": ("Translate from {source_language} to {target_language}:\n\n{text}", lambda row: row["translation"]),
    "summarisation": ("Summarise in one short sentence:\n\n{text}", lambda row: row["summary"]),
    "question_answering": (
        "{context}\n\n{question} Answer with words of the text above. If it has no answer, write: " + REFUSAL,
        _passage,
    ),
    "re_ranking": (
        "Does the description belong to the summary? Answer yes or no.\n\nSummary: {text_a}\nDescription: {text_b}",
        lambda row: FLAGS[int(read_flag(row["relevant"]))],
    ),
}
"""Task -> wording of a question, with the names of columns in braces, and the right answer to it."""


class Asking:
    """Words a task's rows as questions to a chat model, and their targets as its answers.

    Args:
        task: The task.
        state: Its state; classification needs the labels.
        prompt: Other wording, with the names of text columns in braces.
        most_characters: Characters of each text; longer ones are cut.

    Attributes:
        choices: The possible answers, in the order of the task's outputs; empty where the answer is a text.
        scores_pairs: Whether the task's output is one score, that of the second choice above the first.

    Raises:
        UserError: The task has no wording, or the wording names no column of the task.
    """

    def __init__(self, task: Task, state: State, prompt: str | None = None, most_characters: int = 1000) -> None:
        if task.name not in _PROMPTS:
            fix = f"A chat model can be asked for {', '.join(_PROMPTS)}"
            raise UserError(f"no wording of a question for the task {task.name}", fix=fix)
        known, self._answer = _PROMPTS[task.name]
        self._prompt, self._most = prompt or known, most_characters
        self._columns = task.text_columns
        labels: list[str] = state.get("labels", [])
        self.scores_pairs = task.name == "re_ranking"
        self.choices = list(FLAGS) if self.scores_pairs else labels
        options = task.config.model_dump()
        names = (f"{side}_language" for side in ("source", "target"))
        self._words = {name: _LANGUAGES.get(options[name], options[name]) for name in names if name in options}
        self._words["labels"] = ", ".join(labels[:-1]) + f" or {labels[-1]}" if labels else ""
        try:
            self.question(dict.fromkeys(self._columns, ""))
        except (KeyError, IndexError, ValueError) as error:
            fix = f"Use {', '.join(f'{{{name}}}' for name in self._columns)}"
            raise UserError(f"the prompt cannot be filled ({error})", where=self._prompt[:60], fix=fix) from None

    def question(self, row: Row) -> str:
        """Return the question that a row asks."""
        texts = {name: str(row[name])[: self._most] for name in self._columns}
        return self._prompt.format(**self._words, **texts)

    def answer(self, row: Row) -> str:
        """Return the right answer, in one line."""
        return " ".join(self._answer(row).split())

    def conversation(self, row: Row, examples: Sequence[Row] = (), *, answered: bool = False) -> list[dict[str, str]]:
        """Return the messages that ask for a row, after the examples with their answers, with or without its own."""
        turns = [(self.question(each), self.answer(each)) for each in examples]
        messages = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        messages.append({"role": "user", "content": self.question(row)})
        return [*messages, {"role": "assistant", "content": self.answer(row)}] if answered else messages


_LANGUAGES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ru": "Russian",
    "zh": "Chinese",
}
"""ISO 639-1 code -> name that a model knows better."""
