"""Make entities from the cross-references in the docstrings of Python packages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from textmill.fetching.python_docstrings import read_docstrings
from textmill.fetching.sources.archives import Archive
from textmill.fetching.sources.packages import PackagesSource

_NOT_OWN = {"test", "tests", "testing", "vendor", "_vendor", "vendored", "externals", "extern", "conftest.py"}
_LABELS = {
    "class": "class",
    "exc": "exception",
    "func": "function",
    "meth": "function",
    "attr": "attribute",
}
_MARKUP = re.compile(
    r":(?P<role>[\w:.+-]+):`(?P<target>[^`]+)`"
    r"|``(?P<literal>[^`]+)``"
    r"|`(?P<link>[^`<]+?)\s*(?:<[^`>]*>)?`_*"
    r"|\*\*(?P<strong>[^*]+)\*\*"
    r"|(?<![\w*])\*(?P<emphasis>[^*\s][^*]*)\*(?![\w*])"
    r"|\s*\[[\w*#-]+\]_(?P<footnote>)"
)
_TITLED = re.compile(r"(?P<title>.+?)\s*<[^<>]*>\s*$", re.DOTALL)
_ALIAS = re.compile(r"_[a-z]\w*\.")
"""SQLAlchemy writes `_schema.Table` for `Table`."""
_NOT_PROSE = re.compile(r"\s*(>>>|\.\. |\.\.$|```|[|+#•$]|[*-]\s|\d+[.)]\s|:[\w *,.\[\]]+:(\s|$)|@\w+)")
_WORDS = range(6, 81)
_LETTERS = 0.7


class DocstringEntitiesSource(PackagesSource):
    """Make one row for each paragraph of prose with a cross-reference of Sphinx, such as :class:`Path`.

    Columns: `id`, `package`, `text`, the paragraph without markup, and `entities`: what the cross-references named,
    labelled class, exception, function or attribute by their authors. Repeated paragraphs are skipped.
    """

    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """Yield the paragraphs in the order of the files."""
        for name, docstring, _ in read_docstrings(archive, _NOT_OWN):
            for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(docstring))):
                if _NOT_PROSE.match(paragraph) or paragraph[:1].isspace() or "\n    " in paragraph:
                    continue
                text, entities = plain(" ".join(paragraph.split()))
                letters = sum(sign.isalpha() or sign == " " for sign in text)
                if not entities or len(text.split()) not in _WORDS or letters < _LETTERS * len(text):
                    continue
                if text not in self._seen:
                    self._seen.add(text)
                    yield {"id": f"{name}#{number}", "package": package, "text": text, "entities": entities}


def plain(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Return a paragraph without reStructuredText's markup, and its entities: `start`, `end` and `label`."""
    parts: list[str] = []
    entities = []
    at = length = 0
    for match in _MARKUP.finditer(text):
        label = None
        shown = next((value for name, value in match.groupdict().items() if value is not None and name != "role"), "")
        if match["role"] is not None:
            label = _LABELS.get(match["role"].rpartition(":")[2])
            shown = _displayed(match["target"])
        before = text[at : match.start()]
        parts += [before, shown]
        length += len(before)
        if label is not None and shown:
            entities.append({"start": length, "end": length + len(shown), "label": label})
        length += len(shown)
        at = match.end()
    return "".join([*parts, text[at:]]), entities


def _displayed(target: str) -> str:
    """Return the text that Sphinx shows for the target of a cross-reference."""
    if titled := _TITLED.match(target):
        return titled["title"].strip()
    if target.startswith("~"):
        return target.rpartition(".")[2].lstrip("~").strip()
    return _ALIAS.sub("", target.lstrip("!.")).strip()
