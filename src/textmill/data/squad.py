"""Read questions from a JSON file in the format of SQuAD (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from textmill.errors import UserError
from textmill.text.rejected_rows import RejectedRow, excerpt

COLUMNS = ("id", "title", "question", "context", "answers")
"""Columns of a question; `answers` is a list of records, empty for a question without an answer."""


def read_questions(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any] | RejectedRow]]:
    """Yield each question with its number in the file, from 1; reject what is not a question.

    Raises:
        UserError: The file is not such JSON.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({str(error).partition(':')[0]})", where=label) from error
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        fix = 'Use the SQuAD format: {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [...]}]}]}'
        raise UserError("has no list of articles under 'data'", where=label, fix=fix)
    number = 0
    for article in articles:
        for paragraph in _records(article, "paragraphs"):
            for question in _records(paragraph, "qas"):
                number += 1
                if not isinstance(question, dict) or not isinstance(question.get("answers", []), list):
                    yield number, RejectedRow(number, "row", "is not a SQuAD question", label, excerpt(question))
                    continue
                row = {
                    "id": _text(question.get("id")),
                    "title": _text(article.get("title")),
                    "question": _text(question.get("question")),
                    "context": _text(paragraph.get("context")),
                    "answers": [] if question.get("is_impossible") else question.get("answers", []),
                }
                yield number, row


def _records(value: Any, name: str) -> list[Any]:
    records = value.get(name) if isinstance(value, dict) else None
    return records if isinstance(records, list) else []


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
