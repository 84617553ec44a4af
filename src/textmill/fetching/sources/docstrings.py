"""Make pairs of summary and description from the docstrings of Python packages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from textmill.fetching.python_docstrings import read_docstrings
from textmill.fetching.sources.archives import Archive
from textmill.fetching.sources.packages import PackagesSource

_NOT_OWN = {"test", "tests", "testing", "vendor", "_vendor", "vendored", "externals", "extern", "conftest.py"}
"""Folders and files with third-party or undocumented code."""

_SUMMARY_WORDS = range(4, 41)
_BODY_WORDS = range(12, 401)
_LETTERS = 0.75
"""Minimum share of letters and spaces; less is a formula or a table."""

_PROSE_SECTIONS = {"notes", "description", "extended summary"}
_UNDERLINE = re.compile(r"[-=~^]{3,}\s*$")
_SECTION = re.compile(
    r"\s*(Args?|Arguments?|Parameters?|Params|Keyword Args|Keyword Arguments|Other Parameters|Inputs?|Outputs?|"
    r"Returns?|Yields?|Raises|Attributes|Examples?|Example usage|Usage|References?|See also|Warns|Methods|"
    r"Call arguments|Input shape|Output shape|Shapes?|Notes?|Warnings?|Todo|Deprecated):\s*$",
    re.IGNORECASE,
)
_FIELD = re.compile(r"\s*[:@][A-Za-z][\w *,.\[\]]*:?(\s|$)")
_NOT_PROSE = re.compile(r"(>>>|\.\. |\.\.$|```|[|+*#\-•$]|\d+[.)]\s|In \[)")
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!\bvs)(?<!\bcf)(?<!\betc)[.!?](?=\s+[\"'(`A-Z*:]|\s*$)")
_MARKUP = (
    (re.compile(r":[\w:.+-]+:`[~!.]?([^`<]+?)\s*(?:<[^`>]*>)?`"), r"\1"),  # :class:`Name`, :doc:`title <target>`
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_+"), r"\1"),  # `title <address>`_
    (re.compile(r"\[([^\]]+)\]\([^)\s]+\)"), r"\1"),  # [title](address)
    (re.compile(r"\s*\[[\w*#-]+\]_"), ""),  # a footnote
    (re.compile(r"`+([^`]*)`+_*"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"[^.!?]*:\s*$"), ""),  # introduces a block that is removed
)


class DocstringsSource(PackagesSource):
    """Make one row for each docstring with prose after its first sentence.

    Columns: `package`; `name`, qualified; `summary`, the first sentence; `body`, the prose after it,
    without parameter sections, code, tables, lists and markup. A row whose summary or body is in an
    earlier row is skipped, so that every summary has exactly one body.
    """

    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """Yield the documented modules, classes and functions in the order of their files."""
        for name, docstring, _ in read_docstrings(archive, _NOT_OWN):
            pair = summary_and_body(docstring)
            if pair is None or not self._seen.isdisjoint(key := {text.casefold() for text in pair}):
                continue
            self._seen |= key
            yield {"package": package, "name": name, "summary": pair[0], "body": pair[1]}


def summary_and_body(docstring: str) -> tuple[str, str] | None:
    """Return the first sentence of a docstring and the prose after it; None if either is missing or not prose."""
    paragraphs = list(_prose(inspect.cleandoc(docstring)))
    if not paragraphs:
        return None
    first, *others = paragraphs
    end = _SENTENCE_END.search(first)
    cut = end.end() if end else len(first)
    summary, body = first[:cut].strip(), " ".join([first[cut:].strip(), *others]).strip()
    good = _is_prose(summary, _SUMMARY_WORDS) and _is_prose(body, _BODY_WORDS)
    return (summary, body) if good else None


def _prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of prose, each on one line."""
    wanted = True
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if len(lines) > 1 and _UNDERLINE.match(lines[1]):
            wanted = lines[0].strip().casefold() in _PROSE_SECTIONS
            lines = lines[2:]
        lines = _before_sections(lines)
        if not wanted or not lines or all(line[:1].isspace() for line in lines) or _NOT_PROSE.match(lines[0].strip()):
            continue
        if text := _plain(" ".join(line.strip() for line in lines)):
            yield text


def _before_sections(lines: list[str]) -> list[str]:
    """Return the lines before the first section, field list, code or list."""
    for position, line in enumerate(lines):
        underlined = position + 1 < len(lines) and _UNDERLINE.match(lines[position + 1])
        begins = _SECTION.match(line) or _FIELD.match(line) or underlined
        if begins or _NOT_PROSE.match(line.strip()):
            return lines[:position]
    return lines


def _plain(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def _is_prose(text: str, words: range) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(text.split()) in words and letters >= _LETTERS * len(text) and "://" not in text
