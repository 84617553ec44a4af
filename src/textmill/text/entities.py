"""Read, check and realign entities: labelled spans of a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from textmill.text.alignment import Alignment

Units = Literal["words", "whitespace"]

_SCRIPTS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # written without spaces
_UNITS: dict[Units, re.Pattern[str]] = {
    "words": re.compile(rf"[{_SCRIPTS}]|(?:(?![{_SCRIPTS}])[^\W_])+|[^\w\s]|_"),
    "whitespace": re.compile(r"\S+"),
}
LABELS = ("label", "type", "tag", "entity_group", "labels")
"""Names of the label of a span."""
_STARTS, _ENDS = ("start", "start_offset", "begin"), ("end", "end_offset")
_OTHER_PREFIXES = {"L": "E", "U": "S"}
_EXCERPT = 60


@dataclass(frozen=True, order=True)
class Entity:
    """A span of a text, `text[start:end]`, and its label."""

    start: int
    end: int
    label: str


def read_entities(value: Any, text: str) -> list[Entity]:
    """Read the entities of a cell, in their order in the text; an empty cell has none.

    A cell is a JSON list of records with `start`, `end` and `label` (or `type`, `tag`), or of lists of these three.
    Positions count characters. A record may also have `text`, which must then stand there. A list of texts has one tag
    for each word of the text between spaces.

    Raises:
        ValueError: The cell is malformed, a span is not in the text, or two spans overlap.
    """
    if not isinstance(value, str) or not value.strip():
        return []
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"is not a JSON list: {value[:_EXCERPT]!r}") from None
    if not isinstance(content, list):
        raise ValueError(f"is not a JSON list: {value[:_EXCERPT]!r}")
    if content and all(isinstance(item, str) for item in content):
        words = unit_spans(text, "whitespace")
        if len(words) != len(content):
            raise ValueError(f"has {len(content)} tags for {len(words)} words")
        return entities_of(content, words)
    entities = sorted(_entity(item, text) for item in content)
    for one, other in pairwise(entities):
        if other.start < one.end:
            raise ValueError(f"has overlapping spans, {text[one.start : one.end][:_EXCERPT]!r} first")
    return entities


def write_entities(entities: Sequence[Entity]) -> str:
    """Return entities in a form that `read_entities` reads."""
    return json.dumps([{"start": one.start, "end": one.end, "label": one.label} for one in entities])


def realigned(entities: Sequence[Entity], given: str, cleaned: str) -> list[Entity]:
    """Return the same entities of the cleaned text.

    Raises:
        ValueError: Cleaning removed an entity.
    """
    if given == cleaned or not entities:
        return list(entities)
    alignment = Alignment(given, cleaned)
    moved: list[Entity] = []
    for entity in entities:
        start, end = alignment.cleaned_span(entity.start, entity.end)
        part = cleaned[start:end]
        if not part.strip():
            lost = given[entity.start : entity.end][:_EXCERPT]
            raise ValueError(f"has {lost!r}, which is lost when the text is cleaned")
        start += len(part) - len(part.lstrip())
        if moved and start < moved[-1].end:
            raise ValueError(f"has {part[:_EXCERPT]!r}, which overlaps another span when the text is cleaned")
        moved.append(Entity(start, start + len(part.strip()), entity.label))
    return moved


def unit_spans(text: str, units: Units) -> list[tuple[int, int]]:
    """Return start and end of each unit of a text: words and single signs, or what stands between spaces."""
    return [match.span() for match in _UNITS[units].finditer(text)]


def tags_of(entities: Sequence[Entity], units: Sequence[tuple[int, int]]) -> list[str]:
    """Return the tag of each unit: `B-LABEL` at the first of an entity, `I-LABEL` inside it, `O` elsewhere."""
    tags = ["O"] * len(units)
    at = 0
    for entity in entities:
        while at < len(units) and units[at][1] <= entity.start:
            at += 1
        prefix = "B"
        while at < len(units) and units[at][0] < entity.end:
            tags[at] = f"{prefix}-{entity.label}"
            prefix, at = "I", at + 1
    return tags


def entities_of(tags: Sequence[str], units: Sequence[tuple[int, int]]) -> list[Entity]:
    """Return the entities of tags; `I` after another label begins one, as in the CoNLL evaluation."""
    return [Entity(units[first][0], units[last][1], label) for first, last, label in chunks(tags)]


def chunks(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield first and last position and label of each entity in tags of the schemes IOB1, IOB2, IOBES and BILOU."""
    first, label = -1, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        prefix = _OTHER_PREFIXES.get(prefix, prefix)
        begins = prefix in "BS" or (prefix in "IE" and (first < 0 or name != label))
        if first >= 0 and (begins or prefix == "O"):
            yield first, position - 1, label
            first = -1
        if begins:
            first, label = position, name
        if prefix in "ES" and first >= 0:
            yield first, position, label
            first = -1


def _entity(item: Any, text: str) -> Entity:
    if isinstance(item, dict):
        label = next((item[name] for name in LABELS if name in item), None)
        label = label[0] if isinstance(label, list) and len(label) == 1 else label
        start, end = (next((item[key] for key in keys if key in item), None) for keys in (_STARTS, _ENDS))
    elif isinstance(item, list) and len(item) == 3:
        start, end, label = item
    else:
        raise ValueError(f"has an entity without start, end and label: {str(item)[:_EXCERPT]!r}")
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        raise ValueError(f"has a span from {start!r} to {end!r}, which is not in the text of {len(text)} characters")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"has a span without a label: {str(item)[:_EXCERPT]!r}")
    part = text[start:end]
    if isinstance(item, dict) and item.get("text", part) != part:
        raise ValueError(
            f"says {str(item['text'])[:_EXCERPT]!r} at {start}, but the text has {part[:_EXCERPT]!r} there"
        )
    if not part.strip():
        raise ValueError(f"has a span of spaces at {start}")
    start += len(part) - len(part.lstrip())
    return Entity(start, start + len(part.strip()), label.strip())
