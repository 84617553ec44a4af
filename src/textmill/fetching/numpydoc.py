"""Parse docstrings in numpydoc style (https://numpydoc.readthedocs.io) with the position of every part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_UNDERLINE = re.compile(r"[-=]{3,}\s*$")
_NAMES = r"\*{0,2}[A-Za-z_][\w.]*(?:\s*,\s*\*{0,2}[A-Za-z_][\w.]*)*"
_ENTRY = re.compile(rf"(?P<names>{_NAMES})(?:\s*:\s*(?P<kind>\S.*?))?\s*$")
_QUALIFIED = re.compile(r",?\s*\(?(?:optional|default|keyword[- ]only)\b.*$", re.IGNORECASE)
_DEFAULT = re.compile(
    r"\bdefaults?\b\s*(?:value\s+)?(?:is\s+|to\s+|[=:]\s*)?(?P<value>[^\s,;()]+(?:\([^()]*\))?)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r".+?(?:(?<!e\.g)(?<!i\.e)[.!?](?=\s|$)|\n\s*\n|$)", re.DOTALL)
_NO_VALUE = {"is", "to", "value", "the", "a", "an", "behavior", "behaviour", "for", "if", "when", "and", "in", "of"}


@dataclass(frozen=True)
class Span:
    """A passage of a text and its first position."""

    start: int
    text: str


@dataclass(frozen=True)
class Entry:
    """A parameter, a returned value or an error.

    Attributes:
        head: The names as written; the type of a returned value without a name.
        names: The single names.
        kind: The type, without `optional` and the default, if any.
        default: The default value, if stated.
        says_default: Whether the entry contains the word "default".
        sentence: First sentence of the description.
    """

    head: Span
    names: list[str]
    kind: Span | None
    default: Span | None
    says_default: bool
    sentence: Span | None


@dataclass
class Documentation:
    """A docstring: its text, and the entries of its sections by lower-case title."""

    text: str
    sections: dict[str, list[Entry]] = field(default_factory=dict)


def read_numpydoc(text: str, wanted: Sequence[str], most_summary: int) -> Documentation:
    """Parse the summary and the sections `wanted` (lower-case titles) of a docstring without indentation.

    The text before the first section is cut to `most_summary` characters, after a paragraph.
    """
    parts = _parts(text)
    summary = ""
    for paragraph in re.split(r"\n\s*\n", parts[0][1]):
        if summary and len(summary) + len(paragraph) > most_summary:
            break
        summary += ("\n\n" if summary else "") + paragraph.rstrip()
    document = Documentation(summary.strip())
    for title, body in parts[1:]:
        name = title.strip().casefold()
        if name not in wanted or name in document.sections:
            continue
        document.text += f"\n\n{title.strip()}\n{'-' * len(title.strip())}\n"
        start = len(document.text)
        document.text += body.rstrip()
        document.sections[name] = list(_entries(document.text, start))
    return document


def _parts(text: str) -> list[tuple[str, str]]:
    """Return titles and bodies of the sections; the text before them has an empty title."""
    lines = text.split("\n")
    parts: list[tuple[str, list[str]]] = [("", [])]
    position = 0
    while position < len(lines):
        line = lines[position]
        below = lines[position + 1] if position + 1 < len(lines) else ""
        if line.strip() and not line[0].isspace() and _UNDERLINE.match(below):
            parts.append((line, []))
            position += 2
            continue
        parts[-1][1].append(line)
        position += 1
    return [(title, "\n".join(body).strip("\n")) for title, body in parts]


def _entries(text: str, start: int) -> Iterator[Entry]:
    """Yield the entries of the section that extends from `start` to the end of the text."""
    heads = [match for match in re.finditer(r"^\S.*$", text[start:], re.MULTILINE) if _ENTRY.match(match[0])]
    for head, after in zip(heads, [*heads[1:], None], strict=False):
        end = start + after.start() if after else len(text)
        yield _entry(text, start + head.start(), start + head.end(), end)


def _entry(text: str, start: int, head_end: int, end: int) -> Entry:
    match = _ENTRY.match(text[start:head_end])
    assert match is not None, "the caller matched it"
    names = [name.strip().lstrip("*") for name in match["names"].split(",")]
    kind = None
    if match["kind"] and (bare := _QUALIFIED.sub("", match["kind"]).rstrip(" ,")):
        kind = Span(start + match.start("kind"), bare)
    whole = text[start:end]
    default = next((match for match in _DEFAULT.finditer(whole) if match["value"].casefold() not in _NO_VALUE), None)
    value = default["value"].rstrip(".`").lstrip("`") if default else ""
    at = start + whole.index(value, default.start("value")) if default and value else 0
    body = text[head_end:end]
    sentence = _SENTENCE.match(body.strip())
    described = Span(head_end + len(body) - len(body.lstrip()), sentence[0].strip()) if sentence else None
    head = Span(start, match["names"])
    return Entry(head, names, kind, Span(at, value) if value else None, "default" in whole.casefold(), described)
