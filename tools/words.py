"""Check the texts that a user reads against `tools/words.txt`: `python tools/words.py`, run by `make lint`.

Checked are the Markdown pages, the comments of the configuration, the help of all commands, the templates of
reports, and every string literal of the package that is not a docstring (error texts and log messages among them).
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_suffix(".txt")

Text = tuple[str, int, str]
"""Where a text is (a path or a command), its first line there, and the text."""

_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`|\]\([^)]*\)|^<!--.*?-->$", re.MULTILINE | re.DOTALL)
_MARKUP = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>|\{[{%#].*?[}%#]\}", re.DOTALL)
_SPACE = r"[ \t]*[ \t\n][ \t]*"
_COMMENT = re.compile(r"(?:^|\s)#+\s?(.*)$")


def patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return each pattern of the list with its advice."""
    lines = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [line.split(" -> ") for line in lines]
    return [(re.compile(pattern.replace(" ", _SPACE), re.IGNORECASE), advice) for pattern, advice in pairs]


def without(pattern: re.Pattern[str], text: str) -> str:
    """Return the text with what the pattern matches blanked out; lines keep their numbers."""
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def comments(text: str) -> str:
    """Return the comments of a YAML file or a Makefile, each on its line."""
    return "\n".join(found.group(1) if (found := _COMMENT.search(line)) else "" for line in text.splitlines())


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string literal that is not a docstring; `{}` takes the place of a value."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            skipped.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            skipped.update(part for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Dict):  # a key such as "figures" of a JSON document is a name, not a text
            skipped.update(key for key in node.keys if isinstance(key, ast.Constant) and str(key.value).isidentifier())
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(str(part) for part in parts)


def page_texts(root: Path) -> Iterator[Text]:
    """Yield the prose of the pages and the comments of the configuration."""
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("data/**/README.md"), *root.glob("mlruns/*.md")]
    for page in sorted(pages):
        yield str(page.relative_to(root)), 1, without(_CODE, page.read_text(encoding="utf-8"))
    for drawing in sorted(root.glob("docs/*.svg")):
        yield str(drawing.relative_to(root)), 1, without(_MARKUP, drawing.read_text(encoding="utf-8"))
    for path in [*sorted(root.glob("conf/**/*.yaml")), root / "params.yaml", root / "Makefile"]:
        yield str(path.relative_to(root)), 1, comments(path.read_text(encoding="utf-8"))
    yield "dvc.yaml", 1, (root / "dvc.yaml").read_text(encoding="utf-8")


def help_texts() -> Iterator[Text]:
    """Yield the help of each command and of each of its options."""
    from textmill.cli.main import app

    group = typer.main.get_command(app)
    for name, command in [("", group), *group.commands.items()]:  # type: ignore[attr-defined]
        told = [command.help or "", *(getattr(option, "help", None) or "" for option in command.params)]
        yield f"textmill {name} --help".replace("  ", " "), 1, "\n".join(told)


def source_texts(root: Path) -> Iterator[Text]:
    """Yield the string literals of the package and its templates."""
    package = root / "src/textmill"
    for path in sorted(package.rglob("*")):
        place = str(path.relative_to(root))
        if path.suffix in (".html", ".md", ".jinja") and ".css" not in path.suffixes:
            yield place, 1, without(_MARKUP, path.read_text(encoding="utf-8"))
        elif path.suffix == ".py":
            yield from ((place, line, text) for line, text in literals(path.read_text(encoding="utf-8")))


def denied(texts: Iterator[Text]) -> list[str]:
    """Return a line for each denied word: where it is, the word, and what to write."""
    rules = patterns()
    return [
        f"{place}:{first + text.count(chr(10), 0, found.start())}: {' '.join(found.group().split())!r} -> {advice}"
        for place, first, text in texts
        for pattern, advice in rules
        for found in pattern.finditer(text)
    ]


def main() -> int:
    """Print what is denied; return 1 if there is any."""
    found = [*denied(page_texts(ROOT)), *denied(help_texts()), *denied(source_texts(ROOT))]
    print("\n".join(found) or "words: nothing denied")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
