"""Compare the packages installed for a run with those installed now."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from textmill.registry.runs.origin import installed_packages

_ROOT = "textmill"


def package_differences(listing: str) -> tuple[list[str], int]:
    """Return the changes since `listing` of packages that Textmill needs, and the number of other changed packages.

    `listing` has the form of `origin.installed_packages`.
    """
    then, now = _versions(listing), _versions(installed_packages())
    needed = requirement_graph([_ROOT])
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    shown = [f"{name} {then.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in changed if name in needed]
    return shown, len(changed) - len(shown)


def _versions(listing: str) -> dict[str, str]:
    pairs = (line.partition("==") for line in listing.splitlines())
    return {canonicalize_name(name): version for name, _, version in pairs if name}


def requirement_graph(roots: Iterable[str]) -> dict[str, list[str]]:
    """Return the installed distributions that `roots` need, directly or indirectly, each with its direct needs.

    Extras are left out.
    """
    graph: dict[str, list[str]] = {}
    waiting = list(roots)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in graph:
            continue
        try:
            requirements = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        needs = [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
        graph[name] = [canonicalize_name(need) for need in needs]
        waiting += needs
    return {name: [need for need in dict.fromkeys(needs) if need in graph] for name, needs in graph.items()}
