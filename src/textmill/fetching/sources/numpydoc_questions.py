"""Make questions about parameters, defaults, returned values and errors from the docstrings of Python packages."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section
from textmill.fetching.numpydoc import Documentation, Entry, Span, read_numpydoc
from textmill.fetching.python_docstrings import read_docstrings
from textmill.fetching.sources.archives import Archive
from textmill.fetching.sources.base import Provenance
from textmill.fetching.sources.packages import PackagesSource, PackagesSourceConfig

_PARAMETERS = ("parameters", "other parameters")
_RETURNS = ("returns", "yields")
_SECTIONS = (*_PARAMETERS, *_RETURNS, "raises")
_NOT_OWN = {"test", "tests", "testing", "conftest.py", "_vendor", "externals"}
"""Folders and files without documentation of the package itself."""
_FEWEST_PARAMETERS = 2

Phrases = Annotated[list[str], Field(min_length=1)]


class NumpydocQuestionsConfig(PackagesSourceConfig):
    """Options: packages, templates and limits.

    Attributes:
        templates: Kind of question (`type`, `default`, `meaning`, `returned_type`, `returned`,
            `raised`) -> wordings, with `{name}` for the function or class, `{parameter}` and `{error}`.
        answerable: Maximum questions about a docstring that it answers.
        unanswerable: Maximum questions of the same kinds that it does not answer.
        most_characters: Maximum characters of a text; longer ones are skipped.
        most_summary: Maximum characters of a docstring before its first section; the rest is cut.
        most_words: Maximum words of an answer; questions with longer ones are skipped.
    """

    templates: dict[str, Phrases]
    answerable: Annotated[int, Field(ge=1)] = 3
    unanswerable: Annotated[int, Field(ge=0)] = 2
    most_characters: Annotated[int, Field(ge=100)] = 1500
    most_summary: Annotated[int, Field(ge=0)] = 400
    most_words: Annotated[int, Field(ge=1)] = 25


class NumpydocQuestionsSource(PackagesSource):
    """Make questions by templates from numpydoc docstrings, with the exact passages that answer them.

    Columns: `id`, `package`, `name` (of the documented object), `kind`, `question`, `context` (its
    name, its summary and its sections of parameters, returned values and errors), `answers`.
    Questions without an answer ask for a parameter or an error of another docstring, or for a
    default or a returned value that is not mentioned. Repeated docstrings are skipped.
    """

    Config: ClassVar[type[Section]] = NumpydocQuestionsConfig
    config: NumpydocQuestionsConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every package; see `PackagesSource.fetch`."""
        provenance = super().fetch(destination, root)
        wordings = " ".join(text for texts in self.config.templates.values() for text in texts)
        return replace(provenance, made=f"questions made from docstrings by these templates: {wordings}")

    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """Yield questions about every documented class and function, in the order of the files."""
        for row, _ in self.questions(archive, package):
            yield row

    def questions(self, archive: Archive, package: str) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Yield each row with the answers to all questions of its kind about the same docstring."""
        documented = list(self._documented(archive))
        others = [entry for _, document in documented for name in _PARAMETERS for entry in _of(document, name)]
        names = sorted({name for entry in others for name in entry.names if name.isidentifier() and len(name) > 1})
        raised = [entry for _, document in documented for entry in _of(document, "raises")]
        errors = sorted({name for entry in raised for name in entry.names})
        for name, document in documented:
            draw = random.Random(f"{package}.{name}")
            answered = list(self._answered(name, document))
            unanswered = list(self._unanswered(name, document, names, errors, draw))
            chosen = _draw(answered, self.config.answerable, draw) + _draw(unanswered, self.config.unanswerable, draw)
            for number, (kind, values, span) in enumerate(chosen):
                question = draw.choice(self.config.templates[kind]).format(**values)
                answers = [{"text": span.text, "start": span.start}] if span else []
                row = {"id": f"{name}#{number}", "package": package, "name": name, "kind": kind}
                similar = [span.text for other, _, span in answered if other == kind]
                yield row | {"question": question, "context": document.text, "answers": answers}, similar

    def _documented(self, archive: Archive) -> Iterator[tuple[str, Documentation]]:
        for name, docstring, is_module in read_docstrings(archive, _NOT_OWN):
            short = name.rpartition(".")[2]
            if is_module or short.startswith("_"):
                continue
            document = read_numpydoc(f"{short}\n\n{inspect.cleandoc(docstring)}", _SECTIONS, self.config.most_summary)
            parameters = sum(len(_of(document, section)) for section in _PARAMETERS)
            key = " ".join(document.text.split())
            if parameters < _FEWEST_PARAMETERS or len(document.text) > self.config.most_characters:
                continue
            if key not in self._seen:
                self._seen.add(key)
                yield name, document

    def _answered(self, name: str, document: Documentation) -> Iterator[tuple[str, dict[str, str], Span]]:
        """Yield kind, template values and answer of every answerable question."""
        short = name.rpartition(".")[2]
        for section in _PARAMETERS:
            for entry in _of(document, section):
                values = {"name": short, "parameter": entry.names[0], "error": ""}
                spans = {"type": entry.kind, "default": entry.default, "meaning": entry.sentence}
                yield from ((kind, values, span) for kind, span in spans.items() if span and self._fits(span))
        values = {"name": short, "parameter": "", "error": ""}
        for entry in next((_of(document, section) for section in _RETURNS if _of(document, section)), [])[:1]:
            spans = {"returned_type": entry.kind or entry.head, "returned": entry.sentence}
            yield from ((kind, values, span) for kind, span in spans.items() if span and self._fits(span))
        for entry in _of(document, "raises"):
            if entry.sentence and self._fits(entry.sentence):
                yield "raised", values | {"error": entry.names[0]}, entry.sentence

    def _unanswered(
        self, name: str, document: Documentation, parameters: Sequence[str], errors: Sequence[str], draw: random.Random
    ) -> Iterator[tuple[str, dict[str, str], None]]:
        """Yield kind and template values of questions that the text does not answer."""
        values = {"name": name.rpartition(".")[2], "parameter": "", "error": ""}
        own = [entry for section in _PARAMETERS for entry in _of(document, section)]
        for kind in ("type", "default", "meaning"):
            other = draw.choice(parameters)
            if other not in document.text:
                yield kind, values | {"parameter": other}, None
        for entry in own:
            if not entry.says_default:
                yield "default", values | {"parameter": entry.names[0]}, None
        if "return" not in document.text.casefold() and "yield" not in document.text.casefold():
            yield "returned", values, None
        if errors and (other := draw.choice(errors)) not in document.text:
            yield "raised", values | {"error": other}, None

    def _fits(self, span: Span) -> bool:
        return 0 < len(span.text.split()) <= self.config.most_words


def _of(document: Documentation, section: str) -> list[Entry]:
    return document.sections.get(section, [])


def _draw(questions: Sequence[Any], most: int, draw: random.Random) -> list[Any]:
    return draw.sample(questions, min(most, len(questions)))
