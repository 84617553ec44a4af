"""Questions about parameters, defaults, returned values and errors, made from the docstrings of Python packages."""

from __future__ import annotations

import ast
import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section
from textmill.fetching.numpydoc import Documentation, Entry, Span, read
from textmill.fetching.sources.archives import Archive
from textmill.fetching.sources.base import Provenance
from textmill.fetching.sources.packages import PackagesSource, PackagesSourceConfig

_PARAMETERS = ("parameters", "other parameters")
_RETURNS = ("returns", "yields")
_SECTIONS = (*_PARAMETERS, *_RETURNS, "raises")
_NOT_OWN = {"test", "tests", "testing", "conftest.py", "_vendor", "externals"}
"""Parts of a path that hold no documentation of the package itself."""
_FEWEST_PARAMETERS = 2

Phrases = Annotated[list[str], Field(min_length=1)]


class NumpydocQuestionsConfig(PackagesSourceConfig):
    """Which packages, and what is asked.

    Attributes:
        templates: By kind of question (`type`, `default`, `meaning`, `returned_type`, `returned`,
            `raised`) its wordings, with `{name}` for the function or class, `{parameter}` and `{error}`.
        answerable: Questions about one docstring that it answers, at most.
        unanswerable: Questions of the same kinds that it does not answer, at most.
        most_characters: Longer texts are left out.
        most_summary: Characters of a docstring that are kept before its first section.
        most_words: Of an answer; what would be longer is not asked.
    """

    templates: dict[str, Phrases]
    answerable: Annotated[int, Field(ge=1)] = 3
    unanswerable: Annotated[int, Field(ge=0)] = 2
    most_characters: Annotated[int, Field(ge=100)] = 1500
    most_summary: Annotated[int, Field(ge=0)] = 400
    most_words: Annotated[int, Field(ge=1)] = 25


class NumpydocQuestionsSource(PackagesSource):
    """Questions by templates to docstrings in numpydoc's style, with the exact passages that answer them.

    Columns: `id`, `package`, `name` (of the documented object), `kind`, `question`, `context` (its
    name, its summary and its sections of parameters, returned values and errors), `answers`. What a
    docstring does not tell gives questions without an answer: a parameter or an error of another
    docstring, a default or a returned value that is not mentioned. A text that stood in an earlier
    row's docstring gives no row.
    """

    Config: ClassVar[type[Section]] = NumpydocQuestionsConfig
    config: NumpydocQuestionsConfig

    def __init__(self, config: Section) -> None:
        super().__init__(config)
        self._seen: set[str] = set()

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every package; see `PackagesSource.fetch`."""
        found = super().fetch(destination, root)
        wordings = " ".join(text for texts in self.config.templates.values() for text in texts)
        return replace(found, made=f"questions made from docstrings by these templates: {wordings}")

    def rows(self, archive: Archive, package: str) -> Iterator[dict[str, Any]]:
        """Questions to every documented class and function, in the order of the files."""
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
                yield row | {"question": question, "context": document.text, "answers": answers}

    def _documented(self, archive: Archive) -> Iterator[tuple[str, Documentation]]:
        for path in sorted(archive.names):
            parts = PurePosixPath(path).parts
            if not path.endswith(".py") or _NOT_OWN.intersection(parts) or parts[-1].startswith("test_"):
                continue
            with archive.open(path) as file:
                source = file.read()
            for name, docstring in _docstrings(source, ".".join(parts).removesuffix(".py").removesuffix(".__init__")):
                short = name.rpartition(".")[2]
                document = read(f"{short}\n\n{inspect.cleandoc(docstring)}", _SECTIONS, self.config.most_summary)
                parameters = sum(len(_of(document, section)) for section in _PARAMETERS)
                key = " ".join(document.text.split())
                if parameters < _FEWEST_PARAMETERS or len(document.text) > self.config.most_characters:
                    continue
                if key not in self._seen:
                    self._seen.add(key)
                    yield name, document

    def _answered(self, name: str, document: Documentation) -> Iterator[tuple[str, dict[str, str], Span]]:
        """Kind, words of the template and answer of every question that can be asked."""
        short = name.rpartition(".")[2]
        for section in _PARAMETERS:
            for entry in _of(document, section):
                values = {"name": short, "parameter": entry.names[0], "error": ""}
                found = {"type": entry.kind, "default": entry.default, "meaning": entry.sentence}
                yield from ((kind, values, span) for kind, span in found.items() if span and self._fits(span))
        values = {"name": short, "parameter": "", "error": ""}
        for entry in next((_of(document, section) for section in _RETURNS if _of(document, section)), [])[:1]:
            found = {"returned_type": entry.kind or entry.head, "returned": entry.sentence}
            yield from ((kind, values, span) for kind, span in found.items() if span and self._fits(span))
        for entry in _of(document, "raises"):
            if entry.sentence and self._fits(entry.sentence):
                yield "raised", values | {"error": entry.names[0]}, entry.sentence

    def _unanswered(
        self, name: str, document: Documentation, parameters: Sequence[str], errors: Sequence[str], draw: random.Random
    ) -> Iterator[tuple[str, dict[str, str], None]]:
        """The same of questions whose answer the text does not hold."""
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


def _docstrings(source: bytes, module: str) -> Iterator[tuple[str, str]]:
    """Qualified names and docstrings of the classes and functions of a file; none of one that is no Python of today."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    waiting: list[tuple[str, Any]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop()
        docstring = ast.get_docstring(node, clean=False) if node is not tree else None
        if docstring and not name.rpartition(".")[2].startswith("_"):
            yield name, docstring
        inner = [
            child for child in node.body if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        waiting += [(f"{name}.{child.name}", child) for child in reversed(inner)]


def _of(document: Documentation, section: str) -> list[Entry]:
    return document.sections.get(section, [])


def _draw(found: Sequence[Any], most: int, draw: random.Random) -> list[Any]:
    return draw.sample(found, min(most, len(found)))
