"""`textmill lineage`: show the origin of a version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from textmill.cli.output import VERSION_HELP, AsJson, print_json

if TYPE_CHECKING:
    from rich.tree import Tree

_TITLES = {
    "version": "version",
    "run": "made by run",
    "commit": "at git commit",
    "lock": "with dvc.lock",
    "data": "from data (SHA-256)",
    "environment": "in environment",
}
_MAY_LACK = ("teacher", "started_from", "made_from_run", "committed_later_as")


def lineage(
    version: Annotated[str, Argument(help=VERSION_HELP)],
    as_json: AsJson = False,
) -> None:
    """Show what a version was made from: run, git commit, dvc.lock, data, environment.

    Example: textmill lineage movie-reviews/3
    """
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.lineage import find_origin
    from textmill.registry.lineage.lineage import lineage as chain

    parts = chain(find_origin(version, find_layout()))
    if as_json:
        print_json(parts)
        return
    from rich.console import Console

    Console().print(_tree(parts), soft_wrap=True)


def _tree(parts: dict[str, dict[str, Any]]) -> Tree:
    """Nest the parts: each was made from the next."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(_TITLES["version"], style="bold"))
    branch = root
    for name, values in parts.items():
        if name != "version":
            branch = branch.add(Text(_TITLES[name], style="bold"))
        for key, value in values.items():
            if value is not None or key not in _MAY_LACK:
                _add(branch, key, value)
    return root


def _add(branch: Tree, key: str, value: Any) -> None:
    from rich.text import Text

    name = key.replace("_", " ")
    if isinstance(value, dict):
        inner = branch.add(Text(name))
        for one, other in value.items():
            inner.add(Text(f"{one}  {_shown(other)}"))
    else:
        branch.add(Text(f"{name}  {_shown(value)}"))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = "unknown" if value is None else str(value)
    return f"{text[:16]}…" if len(text) == 64 and text.isalnum() else text
