"""Check the documentation: links lead to files, excerpts are in their source, examples print what the page shows."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path
from textwrap import indent

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
ARCHITECTURE = ROOT / "docs/architecture.md"
TEXTBOOK = ROOT / "docs/how-it-works.md"

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_LINKED_NAME = re.compile(r"\[`([\w.]+)`\]\(([^)\s]+\.py)\)")
_DEEPEST = 24


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: what stands behind the fence, and what is inside."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def occurs(excerpt: str, source: str) -> bool:
    """Whether the source has the excerpt's parts, which lines of `...` separate, in order, each at some indentation."""
    position = 0
    for part in re.split(r"^\.\.\.\n", excerpt, flags=re.MULTILINE):
        indented = [indent(part, " " * depth) for depth in range(0, _DEEPEST, 4)]
        ends = [found + len(text) for text in indented if (found := source.find("\n" + text, position)) >= 0]
        if not ends:
            return False
        position = min(ends)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in _LINK.findall(prose) if ":" not in target]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_linked_names_stand_in_their_file() -> None:
    """A link such as [`SwiGLU`](../src/...) names something of that file, or the file itself."""
    for page in PAGES:
        for name, target in _LINKED_NAME.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
            path = page.parent / target
            last = name.rpartition(".")[2]
            assert name in (path.name, path.stem) or re.search(rf"\b{last}\b", path.read_text(encoding="utf-8")), (
                page.name,
                name,
            )


def test_excerpts_stand_in_their_source() -> None:
    excerpts = [(info.split()[1], text) for info, text in blocks(TEXTBOOK) if info.startswith("python ")]
    assert excerpts
    for path, text in excerpts:
        assert (ROOT / path).is_file(), path
        assert occurs(text, (ROOT / path).read_text(encoding="utf-8")), f"not in {path}:\n{text}"


@pytest.mark.parametrize(
    ("excerpt", "expected"),
    [
        ("a = 1\n", True),
        ("a = 1\n...\nc = 3\n", True),
        ("c = 3\n...\na = 1\n", False),
        ("a = 1\nc = 3\n", False),
        ("a = 2\n", False),
    ],
)
def test_an_excerpt_that_differs_is_noticed(excerpt: str, expected: bool) -> None:
    assert occurs(excerpt, "def f():\n    a = 1\n    b = 2\n    c = 3\n") is expected


def rooms() -> list[str]:
    """Return the rooms in the order that test_rooms.py enforces."""
    source = (ROOT / "tests/code/test_rooms.py").read_text(encoding="utf-8")
    return ast.literal_eval(re.findall(r"^ROOMS = (\[.*?\])$", source, re.MULTILINE | re.DOTALL)[0])


def test_architecture_lists_the_rooms_in_their_order() -> None:
    listed = next(text for _, text in blocks(ARCHITECTURE) if text.startswith("errors "))
    assert re.findall(r"\w+", listed) == rooms()


def test_readme_is_short_and_maps_the_rooms_in_their_order() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    mapped = re.findall(r"^│   .── (\w+)/", readme, re.MULTILINE)
    assert mapped == [room for room in rooms() if (ROOT / "src/textmill" / room).is_dir()]


@pytest.mark.slow
def test_examples_answer_as_printed() -> None:
    """All examples one after the other, as a reader would type them."""
    examples = "\n".join(text for info, text in blocks(TEXTBOOK) if info == "pycon")
    test = doctest.DocTestParser().get_doctest(examples, {}, TEXTBOOK.name, str(TEXTBOOK), 0)
    assert test.examples
    told: list[str] = []
    outcome = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    assert not outcome.failed, "".join(told)
