"""Answers that are passages of a text: read from a cell, checked, and brought along when the text is cleaned."""

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
        """The position after its last character."""
        return self.start + len(self.text)


def read_answers(value: str | None, context: str) -> list[Answer]:
    """The answers that a cell holds; none for one that is empty.

    Understood are one text as it is; a JSON list of texts; one of records with `text` and `start`
    (or SQuAD's `answer_start`); and a JSON record of two lists of these names. A text without a
    position stands where it occurs first.

    Args:
        value: The cell.
        context: The text that the answers are passages of.

    Raises:
        ValueError: An answer is not in the text, or not where it should be, or of another form.
    """
    found: list[Answer] = []
    for text, start in _pairs(value):
        if not isinstance(text, str) or not text.strip():
            raise ValueError("has an answer without text")
        shown = repr(text[:_EXCERPT])
        if start is None:
            start = context.find(text)
            if start < 0:
                raise ValueError(f"{shown} is not in the context")
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ValueError(f"{shown} begins at {start!r}, which is no position")
        if context[start : start + len(text)] != text:
            raise ValueError(f"{shown} is not in the context at {start}")
        if (answer := _stripped(text, start)) not in found:
            found.append(answer)
    return found


def write_answers(answers: list[Answer]) -> str:
    """The answers as `read_answers` takes them."""
    return json.dumps([{"text": answer.text, "start": answer.start} for answer in answers], ensure_ascii=False)


def aligned(answers: list[Answer], given: str, cleaned: str) -> list[Answer]:
    """The same passages of the cleaned text.

    Raises:
        ValueError: Nothing is left of one.
    """
    if given == cleaned or not answers:
        return answers
    alignment = Alignment(given, cleaned)
    moved: list[Answer] = []
    for answer in answers:
        start, end = alignment.cleaned_span(answer.start, answer.end)
        if not cleaned[start:end].strip():
            raise ValueError(f"{answer.text[:_EXCERPT]!r} is lost when the context is cleaned")
        if (found := _stripped(cleaned[start:end], start)) not in moved:
            moved.append(found)
    return moved


def problem_of(question: str | None, context: str | None, answers: str | None) -> tuple[str, str] | None:
    """The column of a row that cannot be used, and why; None for a good row."""
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
    """Texts and positions (or None) in a cell."""
    if value is None or not value.strip():
        return []
    try:
        content = json.loads(value) if value.lstrip()[0] in "[{" else value
    except ValueError:
        content = value  # a passage that begins with a bracket
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
