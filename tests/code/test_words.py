"""Check that no user meets a denied word: `tools/words.py` over pages, help and source."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("words", ROOT / "tools/words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


words = load_checker()


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(words.page_texts(ROOT), id="pages"),
        pytest.param(words.help_texts(), id="help"),
        pytest.param(words.source_texts(ROOT), id="source"),
    ],
)
def test_texts_have_no_denied_word(texts: Iterator[tuple[str, int, str]]) -> None:
    assert words.denied(texts) == []


@pytest.mark.parametrize(
    "planted",
    [
        "Whoever wins",
        "a rung's\nmoney",
        "that is no  metric",
        "It is computed anew.",
        "What it costs. Is it?",
        "Of it.",
    ],
)
def test_denied_word_is_found_with_its_line(planted: str) -> None:
    found = words.denied(iter([("page.md", 3, f"First line.\n{planted}")]))
    assert found
    assert all(line.startswith(("page.md:4: ", "page.md:5: ")) for line in found)


@pytest.mark.parametrize(
    "plain", ["What is it?", "There is no metric.", "This is no longer true.", "validation_figures"]
)
def test_plain_text_is_not_denied(plain: str) -> None:
    assert words.denied(iter([("page.md", 1, plain)])) == []


def test_page_is_checked_without_code(tmp_path: Path) -> None:
    for name in ("params.yaml", "Makefile", "dvc.yaml"):
        (tmp_path / name).write_text("a: 1  # the price\n")
    (tmp_path / "README.md").write_text("Good.\n\n```\nwhoever\n```\n\n`anew` is old. A knob.\n")
    found = words.denied(words.page_texts(tmp_path))
    assert [line.split(" -> ")[0] for line in found] == [
        "README.md:7: 'knob'",
        "params.yaml:1: 'price'",
        "Makefile:1: 'price'",
        "dvc.yaml:1: 'price'",
    ]


def test_source_is_checked_without_docstrings() -> None:
    source = '"""Whoever."""\nERROR = UserError(f"{name!r} is no " "file", fix="Mend it")\n'
    found = list(words.literals(source))
    assert found == [(2, "{} is no file"), (2, "Mend it")]
