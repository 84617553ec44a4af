"""Read the docstrings of the Python files in a package's archive."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from textmill.fetching.sources.archives import Archive

_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_docstrings(archive: Archive, excluded: Collection[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield qualified name, docstring and whether it is a module's, by file name, outermost first.

    Skipped are tests, files that this Python version cannot parse, and folders and files `excluded`.
    """
    for path in sorted(archive.names):
        parts = PurePosixPath(path).parts
        if not path.endswith(".py") or not set(parts).isdisjoint(excluded) or parts[-1].startswith("test_"):
            continue
        with archive.open(path) as file:
            source = file.read()
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        stack: list[tuple[str, Any]] = [(".".join(parts).removesuffix(".py").removesuffix(".__init__"), tree)]
        while stack:
            name, node = stack.pop()
            if docstring := ast.get_docstring(node, clean=False):
                yield name, docstring, node is tree
            inner = (child for child in node.body if isinstance(child, _DOCUMENTED))
            stack += [(f"{name}.{child.name}", child) for child in reversed(list(inner))]
