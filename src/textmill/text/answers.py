"""Read, check and realign answers that are passages of a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from textmill.text.alignment import Alignment

_STARTS = ("start", "answer_start")
_EXCERPT = 60


@dataclass(frozen=True)
class Answer:
    """A passage of a text: its words, and the position of its first character."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Position after the last character."""
        return self.start + len(self.text)


def read_answers(value: str | None, context: str) -> list[Answer]:
    """Read the answers of a cell, passages of `context`; an empty cell has none.

    A cell is one text, a JSON list of texts, a JSON list of records with `text` and `start` (or
    SQuAD's `answer_start`), or a JSON record of two lists with these names. A text without a
    position is located at its first occurrence.

    Raises:
        ValueError: An answer is not in the text, not at its position, or malformed.
    """
    answers: list[Answer] = []
    for text, start in _pairs(value):
        if not isinstance(text, str) or not text.strip():
            raise ValueError("has an answer without text")
        shown = repr(text[:_EXCERPT])
        if start is None:
            start = context.find(text)
            if start < 0:
                raise ValueError(f"{shown} is not in the context")
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ValueError(f"{shown} begins at {start!r}, which is not a position")
        if context[start : start + len(text)] != text:
            raise ValueError(f"{shown} is not in the context at {start}")
        if (answer := _stripped(text, start)) not in answers:
            answers.append(answer)
    return answers


def write_answers(answers: list[Answer]) -> str:
    """Return the answers in a form that `read_answers` reads."""
    return json.dumps([{"text": answer.text, "start": answer.start} for answer in answers], ensure_ascii=False)


def aligned(answers: list[Answer], original: str, cleaned: str) -> list[Answer]:
    """Return the same passages of the cleaned text.

    Raises:
        ValueError: Cleaning removed a passage.
    """
    if original == cleaned or not answers:
        return answers
    alignment = Alignment(original, cleaned)
    moved: list[Answer] = []
    for answer in answers:
        start, end = alignment.cleaned_span(answer.start, answer.end)
        if not cleaned[start:end].strip():
            raise ValueError(f"{answer.text[:_EXCERPT]!r} is lost when the context is cleaned")
        if (passage := _stripped(cleaned[start:end], start)) not in moved:
            moved.append(passage)
    return moved


def problem_of(question: str | None, context: str | None, answers: str | None) -> tuple[str, str] | None:
    """Return the column and the reason if a row cannot be used, else None."""
    for column, text in (("question", question), ("context", context)):
        if text is None or not text.strip():
            return column, "is empty"
    try:
        read_answers(answers, context or "")
    except ValueError as error:
        return "answers", str(error)
    return None


def _stripped(text: str, start: int) -> Answer:
    return Answer(text.strip(), start + len(text) - len(text.lstrip()))


def _pairs(value: str | None) -> list[tuple[Any, Any]]:
    """Return the texts and positions (or None) of a cell."""
    if value is None or not value.strip():
        return []
    try:
        content = json.loads(value) if value.lstrip()[0] in "[{" else value
    except (ValueError, RecursionError):
        content = value  # a text that begins with a bracket
    if isinstance(content, str):
        return [(content, None)]
    if isinstance(content, dict):
        if isinstance(content.get("text"), list):
            texts = content["text"]
            starts = next((content[name] for name in _STARTS if isinstance(content.get(name), list)), None)
            if starts is not None and len(starts) != len(texts):
                raise ValueError(f"has {len(texts)} texts, but {len(starts)} positions")
            return list(zip(texts, starts or [None] * len(texts), strict=True))
        content = [content]
    pairs: list[tuple[Any, Any]] = []
    for item in content:
        if isinstance(item, dict):
            pairs.append((item.get("text"), next((item[name] for name in _STARTS if name in item), None)))
        else:
            pairs.append((item, None))
    return pairs
